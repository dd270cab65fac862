"""A and B of every layer at the start of training, kept in a file, so that a resumed run begins at the very same.

Shapes: R rank, D inputs, E outputs of a layer.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import UserError
from harness.experiment.rank import global_rank
from harness.tuner.outlook import Outlook

log = logging.getLogger(__name__)

_WAIT_S = 3600
"""How long the other ranks wait for the first one's file."""


@dataclass(slots=True)
class Factors:
    """A layer's start, on the CPU and in the type that its adapter trains in."""

    A_RD: Tensor
    B_ER: Tensor
    before_A_RD: Tensor | None = None
    before_B_ER: Tensor | None = None
    """LoftQ's product of the alternation before, which gives the quantised base."""


Start = Mapping[str, Factors]
"""By name of the layer in the base model."""


def kept(outlook: Outlook, settings: str, dtype: torch.dtype, compute: Callable[[], Start]) -> dict[str, Factors]:
    """Returns a start from its file; the first rank computes and writes it where there is none.

    Every rank reads what the first one wrote, and a resumed run what the run began with: an SVD on a GPU need not give
    the same bits twice. Random numbers drawn on the way are put back, and its memory is not counted as training's.

    Args:
        outlook: For the device, and the file that keeps it.
        settings: What the start follows from, in words.
        dtype: The adapter's.
        compute: Makes a start.

    Raises:
        UserError: The file is of other settings.
    """
    file = outlook.start_file
    if global_rank() == 0 and not file.is_file():
        began = time.monotonic()
        with torch.random.fork_rng([outlook.device] if outlook.device.type == "cuda" else []):
            _write(file, settings, dtype, compute())
        log.info("tuner.init: computed in %.1f s%s", time.monotonic() - began, _peak(outlook.device))
    deadline = time.monotonic() + _WAIT_S
    while not file.is_file():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file}: the first rank wrote no start within {_WAIT_S} s")
        time.sleep(0.2)
    return _read(file, settings)


def _peak(device: torch.device) -> str:
    """Returns the memory that a start took, in words, and counts anew from here."""
    if device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return f", at most {peak:.1f} GiB on the device"


def _write(file: Path, settings: str, dtype: torch.dtype, start: Start) -> None:
    """Writes the file as a whole: staged beside its target, synced, renamed."""
    tensors = {
        # Layers that are fed the same share what EVA found for them.
        f"{field}/{name}": value.to("cpu", dtype, copy=True).contiguous()
        for name, factors in start.items()
        for field in Factors.__slots__
        if (value := getattr(factors, field)) is not None
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    stage = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, stage, metadata={"settings": settings})
    with open(stage, "rb") as written:
        os.fsync(written.fileno())
    os.replace(stage, file)


def _read(file: Path, settings: str) -> dict[str, Factors]:
    layers: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(file, framework="pt") as stored:
            if (stored.metadata() or {}).get("settings") != settings:
                remedy = "the start of a run with other settings of its tuner; go on with those, or remove it"
                raise UserError(f"{file}: {remedy}")
            for key in stored.keys():  # noqa: SIM118 - no mapping
                field, _, name = key.partition("/")
                layers.setdefault(name, {})[field] = stored.get_tensor(key)
        return {name: Factors(**fields) for name, fields in layers.items()}
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            f"{file}: damaged ({error}); its run can not go on, remove checkpoints/ to begin anew"
        ) from error
