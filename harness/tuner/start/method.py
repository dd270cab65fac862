"""Every start that is computed: what computes it, what becomes of the base weights, and how its result is exported."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.tuner import changed_base, merged
from harness.tuner.layer_plan import Layer
from harness.tuner.outlook import Outlook
from harness.tuner.start.corda import corda
from harness.tuner.start.eva import eva
from harness.tuner.start.factors import Factors, Start
from harness.tuner.start.loftq import loftq, rebased
from harness.tuner.start.lora_ga import lora_ga
from harness.tuner.start.weight import olora, orthogonal, pissa
from harness.tuner.tuned import Tuned

if TYPE_CHECKING:
    from harness.tuner.lora import LoraConfig


class Base(Enum):
    """What a start makes of the base weights, which decides what its result can be exported as."""

    untouched = "untouched"
    """The adapter stands for itself."""
    without_product = "without_product"
    """W - s B A: the adapter is exported as its difference to the start."""
    quantised = "quantised"
    """q(W - s B A) of the product before: no adapter of low rank leads there from W, so the whole model is exported."""


@dataclass(frozen=True, slots=True)
class Method:
    """A start that is computed and kept."""

    compute: "Callable[[PreTrainedModel, list[Layer], LoraConfig, Outlook], dict[str, Factors]]"
    base: Base


METHODS = {
    "orthogonal": Method(orthogonal, Base.untouched),
    "eva": Method(eva, Base.untouched),
    "pissa": Method(pissa, Base.without_product),
    "olora": Method(olora, Base.without_product),
    "corda": Method(corda, Base.without_product),
    "lora_ga": Method(lora_ga, Base.without_product),
    "loftq": Method(loftq, Base.quantised),
}
"""By `tuner.init`, `pissa_niter_N` under pissa; the others draw random numbers alone, which the seed brings back."""


@torch.no_grad()
def change_base(base: PreTrainedModel, layers: list[Layer], start: Start, method: Method, config: "LoraConfig") -> None:
    """Changes the base weights in place, computed on the CPU, so that the same start gives the same bits."""
    if method.base is Base.untouched:
        return
    for layer in layers:
        weight: Any = base.get_submodule(layer.name).weight
        weight.copy_(_changed(weight.float().cpu(), start[layer.name], layer, method, config))


def following(config: "LoraConfig", layers: list[Layer], start: Start) -> "LoraConfig":
    """Returns the config that puts an adapter of its start's rank into each layer, at the scale that it had.

    EVA gives layers other ranks than the config does, and some of them none.
    """
    ranks = {name: factors.A_RD.shape[0] for name, factors in start.items()}
    if not start or ranks == {layer.name: layer.rank for layer in layers}:
        return config
    kept = [layer for layer in layers if layer.name in ranks]
    alphas = {
        layer.name: layer.alpha * (ranks[layer.name] / layer.rank) ** (0.5 if config.rslora else 1) for layer in kept
    }
    return replace(
        config,
        target_modules=list(ranks),
        target_regex=None,
        layers_to_transform=None,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != config.rank},
        alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != config.alpha},
    )


@torch.no_grad()
def set_factors(model: nn.Module, start: Start) -> None:
    """Puts A and B into the adapter, in place."""
    for name, factors in start.items():
        layer: Any = model.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.copy_(factors.A_RD)
        layer.lora_B["default"].weight.copy_(factors.B_ER)


def export_for(method: Method, tuned: Tuned, start: Start) -> Callable[[Path], Path]:
    """Returns the export that loads to what was trained."""
    model = tuned.model
    assert isinstance(model, PeftModel)
    exports = {
        Base.untouched: lambda: tuned.export,
        Base.without_product: lambda: changed_base.exporter(model, start),
        Base.quantised: lambda: merged.exporter(tuned, tuned.base.dtype),
    }
    return exports[method.base]()


def _changed(weight_ED: Tensor, factors: Factors, layer: Layer, method: Method, config: "LoraConfig") -> Tensor:
    if method.base is Base.without_product:
        return weight_ED - layer.scale * (factors.B_ER.float() @ factors.A_RD.float())
    assert factors.before_A_RD is not None and factors.before_B_ER is not None
    return rebased(weight_ED, factors.before_A_RD, factors.before_B_ER, layer, config)
