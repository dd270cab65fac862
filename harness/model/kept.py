"""Base weights that one trial leaves for the next in the same process (`hydra.launcher.warm`).

Tensors are kept and never a model: the next trial makes its own from them, as from a file, so no adapter, hook or
changed module of the last one reaches it. A tensor is kept only if its bytes are those that were read, by a digest
taken before the trial had it and once more when it was done; what was trained, replaced or merged into is read again.
While a trial runs nothing is held here, so it needs no more memory than in a process of its own.
"""

import weakref
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

_CHUNK = 1 << 20
"""Words of 8 bytes that are digested at once."""
_PRIME = 0x100000001B3
_Place = tuple[int, torch.dtype, torch.Size]


def digests(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns a number for the bytes of each contiguous tensor, on its device: a change of one word always changes it.

    Words are multiplied by odd random numbers and summed modulo 2^64; several changed words cancel by chance alone.
    """
    factors: dict[torch.device, Tensor] = {}
    found = []
    for tensor in tensors.values():
        if tensor.device not in factors:
            drawn = torch.randint(-(1 << 62), 1 << 62, (_CHUNK,), generator=torch.Generator().manual_seed(0))
            factors[tensor.device] = (drawn | 1).to(tensor.device)
        found.append(_digest(tensor, factors[tensor.device]))
    # One wait for the device.
    return dict(zip(tensors, torch.stack([item.cpu() for item in found]).tolist() if found else [], strict=True))


class Kept:
    """What a process keeps between trials: weights of one checkpoint, on one device, in one type."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self._source: object = None
        self._tensors: dict[str, Tensor] = {}
        self._digests: dict[str, int] = {}
        self._places: dict[_Place, str] = {}
        self._model: weakref.ref[nn.Module] | None = None

    def hand_over(self, files: list[Path], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Returns, and lets go of, the tensors of these files as they are now; those of others are dropped."""
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        source = (stats, device, dtype)
        tensors, self._tensors = self._tensors, {}
        if source != self._source:
            self._source, self._digests = source, {}
            return {}
        return tensors

    def note(self, read: Mapping[str, Tensor]) -> None:
        """Takes the digests of a trial's tensors, before it has them."""
        new = {name: tensor for name, tensor in read.items() if name not in self._digests}
        self._digests |= digests(new)
        self._places = {_place(tensor): name for name, tensor in read.items()}

    def keep(self, model: nn.Module) -> None:
        """Keeps what a trial that completed has left as it was.

        Args:
            model: The trained one, whatever its tuner has made of it.
        """
        self._model = weakref.ref(model)
        there = (item.detach() for item in chain(model.parameters(), model.buffers()))
        untouched = {name: item for item in there if (name := self._places.get(_place(item))) is not None}
        found = digests(untouched)
        self._tensors = {name: item for name, item in untouched.items() if found[name] == self._digests[name]}
        self._places = {}

    @property
    def holds_model(self) -> bool:
        """Whether something still refers to the last trial's model, once garbage has been collected."""
        return self._model is not None and self._model() is not None


def _place(tensor: Tensor) -> _Place:
    return tensor.data_ptr(), tensor.dtype, tensor.shape


def _digest(tensor: Tensor, factors_C: Tensor) -> Tensor:
    """Returns one int64."""
    bytes_N = tensor.detach().reshape(-1).view(torch.uint8)
    whole = len(bytes_N) // 8 * 8
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    # Where the storage is not aligned to words, they are copied to where it is.
    words = bytes_N[:whole] if bytes_N.storage_offset() % 8 == 0 else bytes_N[:whole].clone()
    for part_C in (*words.view(torch.int64).split(_CHUNK), bytes_N[whole:].long()):
        total = total * _PRIME + (part_C * factors_C[: len(part_C)]).sum()
    return total
