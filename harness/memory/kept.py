"""What a layer keeps for its backward pass under each policy, found by running it on tensors without memory.

Autograd itself says what it saves, so adapters, kernels and types need no formula of their own. A layer is traced once
for each set of shapes and trained weights; the whole model takes well under a second.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy
from transformers import PreTrainedModel

from harness.data.extent import Extent
from harness.errors import reject
from harness.memory.checkpointing import is_large, is_product, keeps

COMPILED_SURPLUS = 1.8
"""What a compiled layer keeps, in results of its products: partitioners keep some inputs of pointwise chains too. On an
H200 layers of 2B that train whole kept 1.8."""
ADAPTED_SURPLUS = 1.5
"""And one whose large matrices are frozen, which need no input of theirs: 1.50 with LoRA of ranks 8 and 64 on 4B."""
DROPPED_SURPLUS = 1.6
"""And one that drops some of what its adapters see: 1.61 with LoRA on 4B, 1.59 on 2B."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of one layer, by policy."""

    none: int
    selective: int
    full: int


def kept_by_layers(
    model: PreTrainedModel, extent: Extent, device: torch.device, dtype: torch.dtype, compiled: bool
) -> list[Kept]:
    """Returns what each layer of the LLM keeps.

    Args:
        model: The base model, with any adapter in its modules, before policies are set and layers compiled.
        extent: The largest micro-batch.
        device: Where the model will train; it need not be there yet.
        dtype: In which matrix products run, by autocast.
        compiled: Whether layers are compiled: what pointwise operations need is then computed again by itself.

    Raises:
        UserError: A layer looks at values while it runs, and these have none.
    """
    language: Any = model.model.language_model
    config = language.config
    width, head = config.hidden_size, getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)

    def run(layer: nn.Module) -> tuple[Tensor, dict[str, Any]]:
        length = extent.tokens
        hidden = torch.empty(1, length, width, dtype=language.embed_tokens.weight.dtype, device=device)
        rotation = torch.empty(1, length, head, dtype=hidden.dtype, device=device)
        starts = torch.tensor([0, length], dtype=torch.int32, device=device)
        names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        told = dict(zip(names, (starts, starts, length, length), strict=True))
        return hidden, {"position_embeddings": (rotation, rotation), "attention_mask": None, **told}

    outside = (model.model.visual, language.embed_tokens)
    return _all(language.layers, run, dtype, compiled, from_below=any(map(_trains, outside)))


def kept_by_blocks(
    model: PreTrainedModel, extent: Extent, device: torch.device, dtype: torch.dtype, compiled: bool
) -> list[Kept]:
    """Returns what each block of the ViT keeps, where gradients go through them; see above."""
    visual: Any = model.model.visual
    config = visual.config
    head, patches = config.hidden_size // config.num_heads, extent.visual * visual.spatial_merge_size**2

    def run(block: nn.Module) -> tuple[Tensor, dict[str, Any]]:
        hidden = torch.empty(patches, config.hidden_size, dtype=model.dtype, device=device)
        rotation = torch.empty(patches, head, device=device)
        # The stock attention reads lengths off the tensor to cut it up, except for kernels that take it as it is.
        flash = "flash" in config._attn_implementation
        starts: Any = torch.tensor([0, patches], dtype=torch.int32, device=device) if flash else np.array([0, patches])
        return hidden, {
            "cu_seqlens": starts,
            "max_seqlen": patches,
            "position_embeddings": (rotation, rotation),
        }

    from_below = _trains(visual.patch_embed) or _trains(visual.pos_embed)
    return _all(visual.blocks, run, dtype, compiled, from_below) if patches else []


Arguments = Callable[[nn.Module], tuple[Tensor, dict[str, Any]]]


def _all(
    layers: Sequence[nn.Module] | nn.ModuleList,
    arguments: Arguments,
    dtype: torch.dtype,
    compiled: bool,
    from_below: bool,
) -> list[Kept]:
    """Traces layers from the bottom up; where no gradient has a way to yet, nothing is kept.

    Args:
        layers: They pass a hidden state on.
        arguments: Makes the hidden state and the other arguments of a layer.
        dtype: See above.
        compiled: See above.
        from_below: Whether something that trains makes the first hidden state.
    """
    known: dict[Any, Kept] = {}
    found = []
    for layer in layers:
        if not (from_below or _trains(layer)):
            found.append(Kept(0, 0, 0))
            continue
        kind = from_below, *((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
        if kind not in known:
            known[kind] = _trace(layer, arguments, dtype, compiled, from_below)
        found.append(known[kind])
        from_below = True
    return found


def _trace(layer: nn.Module, arguments: Arguments, dtype: torch.dtype, compiled: bool, from_below: bool) -> Kept:
    """Runs a layer forward with gradients in training mode, on fake tensors, and adds up what is saved."""
    saved: dict[int, Tensor] = {}
    weights: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor) and (key := tensor.untyped_storage()._cdata) not in weights:
            saved[key] = tensor
        return tensor

    was_training = layer.training
    layer.train()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.random.fork_rng(devices=[]):
            hidden, told = arguments(layer)
            hidden.requires_grad_(from_below)
            autocast = nullcontext() if dtype is torch.float32 else torch.autocast(hidden.device.type, dtype)
            hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
            with (
                _pretended(layer, mode, hidden.device) as weights,
                autocast,
                hooks,
                _Products(hidden.shape[-1]) as products,
            ):
                layer(hidden, **told)
    except DataDependentOutputException as error:
        remedy = "can not be predicted: what the tuner put into a layer looks at values while it runs; choose a policy"
        raise reject("memory.checkpointing", "auto", remedy) from error
    finally:
        layer.train(was_training)
    full = hidden.nbytes
    none = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    if compiled:
        none = min(none, full + int(_surplus(layer, hidden.shape[-1]) * products.all))
    # A compiled layer keeps no product that nothing looks at again: its last one only becomes the layer's result.
    selective = products.kept if compiled else full + products.kept
    return Kept(max(none, full), min(max(selective, full), max(none, full)), full)


@contextmanager
def _pretended(layer: nn.Module, mode: FakeTensorMode, device: torch.device) -> Iterator[set[int]]:
    """Puts fakes of a layer's tensors in their place for a while, on the device: what kernels keep depends on it.

    Not by `torch.func.functional_call`, which leaves them where modules are shared, as VeRA's are. Yields the storages.
    """
    owners = {id(module): module for module in layer.modules()}.values()
    held = [(tensors, dict(tensors)) for module in owners for tensors in (module._parameters, module._buffers)]
    fakes: dict[int, Tensor] = {}
    for tensors, real in held:
        for name, tensor in real.items():
            if tensor is not None:
                if id(tensor) not in fakes:
                    fakes[id(tensor)] = mode.from_tensor(tensor).to(device)
                tensors[name] = fakes[id(tensor)]  # type: ignore[assignment]
    try:
        yield {tensor.untyped_storage()._cdata for tensor in fakes.values()}
    finally:
        for tensors, real in held:
            tensors.clear()
            tensors.update(real)  # type: ignore[arg-type]


def _surplus(layer: nn.Module, width: int) -> float:
    """Returns what a compiled layer keeps, in results of its products."""
    if _trains_products(layer, width):
        return COMPILED_SURPLUS
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules())
    return DROPPED_SURPLUS if drops else ADAPTED_SURPLUS


def _trains_products(layer: nn.Module, width: int) -> bool:
    return any(p.requires_grad and p.ndim == 2 and is_large(width, p.shape) for p in layer.parameters())


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


class _Products(TorchDispatchMode):
    """Adds up the results of attention and of products: those that selective keeps, and all but adapters' last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kept = self.all = 0
        self._width = width

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) else result
        if keeps(None, func, *args) is CheckpointPolicy.MUST_SAVE:
            self.kept += first.nbytes
            self.all += first.nbytes
        elif is_product(self._width, func, *args):
            self.all += first.nbytes
        return result
