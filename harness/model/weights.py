"""Reads a checkpoint's tensors in threads, straight to the device where they will stay.

A run begins this before it imports most of its packages and looks at its data, which takes about as long as the
reading. Only safetensors files of a folder are read so; what a hub id stands for may have to be downloaded first, which
is left to transformers. The model is put together from the tensors later and in the main thread: making it changes
torch's default type and its initialisers for all threads.
"""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from harness.model.checkpoint_path import INDEX, WHOLE, resolve
from harness.model.qwen3_vl import Dtype, Qwen3VLConfig

if TYPE_CHECKING:
    from torch import nn

    from harness.model.kept import Kept

THREADS = 4
"""One alone copies from the page cache at some 2 GB/s."""
_SWITCH_S = 0.0005
"""Longest wait for the interpreter behind an importing main thread; each tensor needs it a few times."""
_PENDING = torch.empty(0)


class Weights:
    """Tensors on their way to a device."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype | None, kept: "Kept | None" = None
    ) -> None:
        """Begins to read.

        Args:
            folder: A checkpoint for which `is_readable` holds.
            device: Where the tensors go.
            dtype: Type that floating-point tensors get on the way; None leaves them the file's own.
            kept: Of the trials before in this process, which need not be read again.
        """
        self.device = device
        self._dtype = dtype
        self._kept = kept
        self._have: dict[str, Tensor] = {}
        self.reused_gib = 0.0
        """Of what need not be read."""
        self._left = self._names(folder)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._read: dict[str, Tensor] = {}
        self._error: BaseException | None = None
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        # Daemons: a process that ends in disorder does not wait for them.
        self._threads = [threading.Thread(target=self._work, name="weights", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def take(self) -> dict[str, Tensor]:
        """Waits for the last tensor and hands all of them over, by name, in the order of the files.

        Raises:
            OSError: A file can not be read.
            SafetensorError: A file is damaged.
            OutOfMemoryError: The device has no room for them.
        """
        self._join()
        if self._error is not None:
            raise self._error
        read, self._read = self._read, {}
        self._have = {}
        if self._kept is not None:
            self._kept.note(read)
        return read

    def leave(self, model: "nn.Module") -> None:
        """Leaves to the next trial of this process, where there may be one, what training did not change."""
        if self._kept is not None:
            self._kept.keep(model)

    def stop(self) -> None:
        """Ends the reading, which takes no longer than a tensor, and forgets what was read."""
        self._stopped.set()
        self._join()
        self._read, self._have = {}, {}

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        sys.setswitchinterval(self._switch_s)

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._lock:
                    found = next(self._left, None)
                    if found is None:
                        return
                    opened, name = found
                    # Holds the name's place, whichever thread is first: the first type decides what `auto` means.
                    self._read[name] = self._have.get(name, _PENDING)
                if name in self._have:
                    continue
                self._read[name] = self._converted(opened.get_tensor(name))
        except BaseException as error:
            self._error = error
            self._stopped.set()

    def _names(self, folder: Path) -> Iterator[tuple[safe_open, str]]:
        """Yields tensors' names with the file that they are in, one open file at a time."""
        files = _files(folder)
        if self._kept is not None:
            self._have = self._kept.hand_over(files, self.device, self._dtype)
            self.reused_gib = sum(tensor.nbytes for tensor in self._have.values()) / 2**30
        for file in files:
            opened = safe_open(file, framework="pt", device=str(self.device))
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield opened, name

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor if self._dtype is None or not tensor.is_floating_point() else tensor.to(self._dtype)


def begin(config: Qwen3VLConfig, device: torch.device, kept: "Kept | None" = None) -> Weights | None:
    """Begins to read the weights that a config names, or does nothing where only transformers can find them.

    Args:
        config: Of the model.
        device: Where the tensors go.
        kept: Of the trials before in this process.

    Raises:
        UserError: The path looks like a folder and is none, or holds no Qwen3-VL.
    """
    folder = Path(resolve(config.path))
    if not is_readable(folder):
        return None
    return Weights(folder, device, None if config.dtype is Dtype.auto else getattr(torch, config.dtype.name), kept)


def is_readable(folder: Path) -> bool:
    """Whether this is a folder whose weights lie in safetensors files of the usual names."""
    if not any((folder / name).is_file() for name in (WHOLE, INDEX)):
        return False
    # A checkpoint may name other files, which transformers finds, or hold weights that it has to unpack.
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return not {"transformers_weights", "quantization_config"} & described.keys()


def _files(folder: Path) -> list[Path]:
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    try:
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(shards))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{INDEX} is damaged") from error
