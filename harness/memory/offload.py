"""Inputs of checkpointed layers wait in page-locked host memory between their forward and their backward pass.

A side stream copies them out while the layer computes, and back while the layer above is in its backward pass. Only the
hidden state is moved, told by its address: what else a layer saves are weights, or shared by all layers.
"""

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from harness.errors import reject

if TYPE_CHECKING:
    from harness.memory.config import MemoryConfig

_ON_THE_WAY = 2
"""Tensors that may still be in the GPU's memory while they are copied out."""


def set_offload(config: "MemoryConfig", model: PreTrainedModel, device: torch.device) -> None:
    """Makes the checkpointed layers of the LLM leave their inputs on the host, in place, where the config asks for it.

    Raises:
        UserError: The model does not train on a GPU.
    """
    if not config.offload_activations:
        return
    if device.type != "cuda":
        raise reject("memory.offload_activations", "true", "needs a GPU; leave it out on the CPU")
    offload = Offload()
    for layer in model.model.language_model.layers[: config.checkpointed_layers]:
        offload.attach(layer)


class _Parked:
    """One tensor on the host."""

    __slots__ = ("__weakref__", "arrived", "before", "device", "host", "left", "tensor")

    def __init__(self, tensor: Tensor, before: "weakref.ref[_Parked] | None") -> None:
        self.tensor: Tensor | None = tensor
        """On the GPU: on its way out, or back again."""
        self.device = tensor.device
        self.host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self.before = before
        """What was parked before it, and so comes after it in the backward pass."""
        self.left: Any = None
        self.arrived: Any = None


class Offload:
    """Parks tensors in the order of the forward pass and fetches them, one ahead, in the reverse order."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._leaving: deque[_Parked] = deque()
        self._last: weakref.ref[_Parked] | None = None

    def attach(self, layer: Any) -> None:
        """Makes a layer that is computed again (`recompute`) park its input where that is saved."""
        layer.recompute = partial(self._parking, layer.recompute)

    def _parking(self, recompute: Callable[..., Tensor], function: Any, hidden: Tensor, **told: Any) -> Tensor:
        # The hooks live as long as the graph: a reference to the tensor itself would keep it.
        wanted = _identity(hidden)

        def pack(tensor: Tensor) -> Tensor | _Parked:
            return self.park(tensor) if _identity(tensor) == wanted else tensor

        def unpack(packed: Tensor | _Parked) -> Tensor:
            return self.fetch(packed) if isinstance(packed, _Parked) else packed

        with saved_tensors_hooks(pack, unpack):
            return recompute(function, hidden, **told)

    def park(self, tensor: Tensor) -> _Parked:
        """Begins to copy a tensor to the host."""
        parked = _Parked(tensor, self._last)
        self._last = weakref.ref(parked)
        if not tensor.is_cuda:
            parked.host.copy_(tensor)
            parked.tensor = None
            return parked
        stream, current = self._side(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            parked.host.copy_(tensor, non_blocking=True)
        parked.left = stream.record_event()
        self._leaving.append(parked)
        while len(self._leaving) > _ON_THE_WAY:
            self._let_go(self._leaving.popleft())
        return parked

    def fetch(self, parked: _Parked) -> Tensor:
        """Returns a tensor on its device again, and begins to fetch the one that is needed next."""
        self._begin(parked)
        tensor = parked.tensor
        assert tensor is not None
        if parked.arrived is not None:
            torch.cuda.current_stream().wait_event(parked.arrived)
        if parked in self._leaving:
            self._leaving.remove(parked)
            torch.cuda.current_stream().wait_event(parked.left)
        parked.tensor = None
        before = parked.before() if parked.before is not None else None
        if before is not None:
            self._begin(before)
        return tensor

    def _begin(self, parked: _Parked) -> None:
        if parked.tensor is not None:
            return
        if parked.device.type != "cuda":
            parked.tensor = parked.host.to(parked.device, copy=True)
            return
        # Made on the stream that will use it and free it, so its memory may be in use there up to this moment.
        parked.tensor = torch.empty_like(parked.host, device=parked.device, pin_memory=False)
        stream = self._side()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            parked.tensor.copy_(parked.host, non_blocking=True)
        parked.arrived = stream.record_event()

    def _let_go(self, parked: _Parked) -> None:
        """Frees a tensor on the GPU; what is allocated in its place waits for the copy."""
        torch.cuda.current_stream().wait_event(parked.left)
        parked.tensor = None

    def _side(self) -> Any:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream


def _identity(tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype
