"""Puts quantised layers in the place of a loaded model's linear layers, one at a time on their way to the device.

The model is read to the host first, so that the device never holds it in its own type: at the most one layer of it.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import reject
from harness.memory.quant.config import QuantConfig
from harness.memory.quant.linear import Quantized, QuantLinear, quantized_layers
from harness.model.component import stacked_experts

log = logging.getLogger(__name__)

_HEAD = "lm_head"


def quantize(
    model: PreTrainedModel,
    config: QuantConfig,
    device: torch.device,
    method: Callable[[Tensor, str], Quantized],
    compute_dtype: torch.dtype | None = None,
) -> None:
    """Quantises linear layers, in place, and moves all else to the device as it is.

    Args:
        model: Frozen, as loaded, on the host.
        config: For what stays as it is.
        device: Where the model will train.
        method: Quantises a weight (E, D) that lies there; given its name for messages.
        compute_dtype: Type of the products; None: as the layers were.

    Raises:
        UserError: The checkpoint is quantised already, or `skip` names nothing, or leaves nothing.
    """
    names = linear_names(model, config)
    before = 0
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        weight_ED = layer.weight.detach()
        before += weight_ED.nbytes
        quantized = method(weight_ED.to(device), name)
        shape = (layer.out_features, layer.in_features)
        model.set_submodule(name, QuantLinear(quantized, shape, layer.bias, weight_ED.dtype, compute_dtype))
    model.to(device)  # type: ignore[arg-type]
    after = sum(layer.nbytes for _, layer in quantized_layers(model))
    log.info("memory/quant: %d linear layers, %.2f GiB -> %.2f", len(names), before / 2**30, after / 2**30)


def linear_names(model: PreTrainedModel, config: QuantConfig) -> list[str]:
    """Returns the linear layers that are to be quantised, in model order; weights are not looked at.

    Args:
        model: May lie on the meta device.
        config: For what stays as it is.

    Raises:
        UserError: As for `quantize`.
    """
    if getattr(model, "is_quantized", False):
        remedy = "the checkpoint is quantised already; use memory/quant=none"
        raise reject("memory/quant", config.name, remedy)  # type: ignore[attr-defined]
    known = [name for name, _ in model.named_modules()]
    for entry in config.skip:
        if not any(_names(entry, name) for name in known):
            raise reject(
                "memory.quant.skip", entry, "is part of no module's name; such as model.visual, lm_head, down_proj"
            )
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    chosen = [name for name in linear if not any(_names(entry, name) for entry in config.skip)]
    if not chosen:
        raise reject("memory.quant.skip", config.skip, "leaves no linear layer to quantise; use memory/quant=none")
    if _HEAD in chosen and model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        remedy = "has to name lm_head: in this model it is tied to the embedding"
        raise reject("memory.quant.skip", config.skip, remedy)
    if stacked := stacked_experts(model):
        log.warning("memory/quant: experts stay as they are: %s is no linear layer", stacked[0])
    return chosen


def saved_bytes(model: PreTrainedModel, config: Any) -> int:
    """Returns by how much smaller the weights of a model are to become, with any adapter in its modules; may be meta.

    Args:
        model: Not quantised yet; else nothing is left to save.
        config: The method's, with `bytes_of`.

    Raises:
        UserError: As for `quantize`.
    """
    if next(quantized_layers(model), None) is not None:
        return 0
    layers = [model.get_submodule(name) for name in linear_names(model, config)]
    # What an adapter has of linear layers trains.
    frozen = [layer for layer in layers if isinstance(layer, nn.Linear) and not layer.weight.requires_grad]
    held = (config.bytes_of(layer.out_features, layer.in_features, layer.weight.itemsize) for layer in frozen)
    return sum(layer.weight.nbytes for layer in frozen) - sum(held)


def _names(entry: str, name: str) -> bool:
    return f".{entry.strip('.')}." in f".{name}."
