"""A copy of a run's state in host memory, which may be written while training goes on.

Storages are copied, not tensors: what shares one still does, so that the bytes that torch.save makes of the copy are
those that it makes of the state.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn


@dataclass(slots=True)
class Snapshot:
    """Copies states one after the other; their memory is used again."""

    keeps: bool
    """Whether the copy has to stay as it is while the state changes. Else only what is not on the host is copied."""
    _buffers: list[torch.UntypedStorage] = field(default_factory=list)
    _copies: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    """Of the storages seen so far, by address of what torch has for them."""
    num_bytes: int = 0
    """Size of what was taken last."""

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns the copy; it may be changed by the next call."""
        taken = self._copy(state)
        self.num_bytes = sum(storage.nbytes() for storage in self._copies.values())
        self._copies.clear()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return taken

    def _copy(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self._tensor(tree)
        if isinstance(tree, dict):
            made = copy.copy(tree)
            for key, value in tree.items():
                made[key] = self._copy(value)
            return made
        if type(tree) in (list, tuple):
            return type(tree)(self._copy(item) for item in tree)
        return copy.copy(tree)

    def _tensor(self, tensor: Tensor) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            return tensor.detach().to("cpu", copy=True)
        # No gradient: the state of a parameter is its numbers.
        tensor = tensor.detach()
        made = torch.empty(0, dtype=tensor.dtype)
        return made.set_(
            self._storage(tensor.untyped_storage()), tensor.storage_offset(), tensor.shape, tensor.stride()
        )  # type: ignore[call-overload]

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if (known := self._copies.get(storage._cdata)) is not None:
            return known
        on_host = storage.device.type == "cpu"
        if on_host and not self.keeps:
            made = storage
        elif not self.keeps:
            made = storage.cpu()
        else:
            made = self._buffer(len(self._copies), storage.nbytes(), pinned=not on_host)
            made.copy_(storage, non_blocking=True)
        self._copies[storage._cdata] = made
        return made

    def _buffer(self, number: int, size: int, *, pinned: bool) -> torch.UntypedStorage:
        """Returns memory from the last time where it has the size; page-locked memory is dear to get."""
        if number < len(self._buffers) and self._buffers[number].nbytes() == size:
            return self._buffers[number]
        made = torch.empty(size, dtype=torch.uint8, pin_memory=pinned).untyped_storage()
        del self._buffers[number:]
        self._buffers.append(made)
        return made


class Holder(TorchCheckpointIO):
    """Takes what Lightning has for a file, and writes nothing: the checkpointer does, when and where it wants."""

    def __init__(self, keeps: bool) -> None:
        """Args: keeps: as for `Snapshot`."""
        self.snapshot = Snapshot(keeps)
        self._held: dict[str, Any] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copies the state to the host."""
        self._held = self.snapshot.take(checkpoint)

    def release(self) -> dict[str, Any] | None:
        """Returns what was taken, once."""
        held, self._held = self._held, None
        return held
