"""Puts float8 layers in the place of the LLM's frozen linear layers."""

import logging
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.errors import reject
from harness.memory.fp8_linear import Fp8Linear, quantize

log = logging.getLogger(__name__)

_OLDEST = (8, 9)
"""Compute capability from which on GPUs multiply float8: Ada, Hopper, Blackwell."""
_STEP = 16
"""The product takes matrices whose sides are multiples of this."""


def check_device(device: torch.device) -> None:
    """Refuses a device without float8 products.

    Raises:
        UserError: It is a CPU, or an older GPU.
    """
    needed = "needs a GPU of compute capability {}.{} or later (Ada, Hopper, Blackwell)".format(*_OLDEST)
    if device.type != "cuda":
        raise reject("memory", "fp8_base", f"{needed}, and this is a {device.type}; use memory=standard")
    if (capability := torch.cuda.get_device_capability(device)) < _OLDEST:
        name = torch.cuda.get_device_name(device)
        raise reject("memory", "fp8_base", f"{needed}, and {name} has {capability[0]}.{capability[1]}")


def replace(model: PreTrainedModel, device: torch.device, keep_transpose: bool) -> None:
    """Quantises every frozen linear layer in the LLM's decoder layers, in place; adapters around them stay.

    Raises:
        UserError: There is none, or its weights are not bfloat16.
    """
    layers = model.model.language_model.layers
    found = dict(frozen_layers(model))
    if not found:
        raise reject("memory", "fp8_base", "no linear layer of the LLM is frozen, so none can be float8; use standard")
    for name, layer in found.items():
        if layer.weight.dtype != torch.bfloat16:
            remedy = f"needs weights in bfloat16, and {name} is {layer.weight.dtype}; set model.dtype=bfloat16"
            raise reject("memory", "fp8_base", remedy)
    before = sum(layer.weight.nbytes for layer in found.values())
    for name in list(found):
        _replace(layers, name, found.pop(name), device, keep_transpose)
    new = [module for module in layers.modules() if isinstance(module, Fp8Linear)]
    after = sum(layer.weight_q.nbytes * (2 if keep_transpose else 1) for layer in new)
    log.info(
        "memory=fp8_base: %d linear layers of the LLM in float8, %.2f GiB -> %.2f",
        len(new),
        before / 2**30,
        after / 2**30,
    )


def frozen_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yields what `replace` replaces, by name below the decoder layers: what an adapter brought along is none of it."""
    for name, module in model.model.language_model.layers.named_modules():
        own = name.endswith("_proj") or name.endswith("_proj.base_layer")
        fits = type(module) is nn.Linear and not module.in_features % _STEP and not module.out_features % _STEP
        if own and fits and not any(p.requires_grad for p in module.parameters()):
            yield name, module  # type: ignore[misc]


def _replace(layers: nn.Module, name: str, layer: nn.Linear, device: torch.device, keep_transpose: bool) -> None:
    weight = quantize(layer.weight.to(device), keep_transpose)
    bias = None if layer.bias is None else nn.Parameter(layer.bias.to(device), requires_grad=False)
    holder, _, leaf = name.rpartition(".")
    setattr(layers.get_submodule(holder), leaf, Fp8Linear(weight, bias, layer.weight.dtype))
