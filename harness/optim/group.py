"""Parameter groups: a learning rate for each component of the model, and no weight decay on vectors.

Norm weights, biases and the scales and gates of adapters are no matrices: pulling them to zero regularises nothing and
fights the normalisation (the rule of GPT-3, arXiv 2005.14165, and of transformers' Trainer).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.optim.config import OptimConfig
from harness.optim.depth import places

NO_DECAY = "_no_decay"
"""End of the name of a group whose weights do not decay; its learning rate is that of the group without it."""


def parameter_groups(
    model: nn.Module, config: OptimConfig, lr: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Splits what trains by component, by layer where rates fall with depth, by its own factor, and by decay.

    Freezing is the caller's and done before: a parameter that does not require a gradient is in no group.

    Args:
        model: A Qwen3-VL, with or without PEFT's wrapper.
        config: Rates, their decay over layers (see `harness.optim.depth`), and weight decay.
        lr: Peak learning rate where a component has none of its own; the caller resolved `config.lr`.
        lr_scales: By parameter name, the factor on the rate of its component (LoRA+'s ratio for B); 1 where absent.

    Returns:
        Groups for a torch optimiser in the order llm, aligner, vit, from the bottom up, each with `params` as (name,
        parameter) in the model's order, `lr`, `weight_decay`, `name` (`llm`, `llm_no_decay`, `llm_x16`,
        `vit_layer_03`, ...) and `component`. Tied parameters stand once.

    Raises:
        UserError: Nothing trains, or a component with a learning rate of its own trains nothing.
    """
    own_rates = {Component.aligner: config.aligner_lr, Component.vit: config.vit_lr}
    scales, depth_factor = lr_scales or {}, config.layer_decay or 1.0
    named = dict(model.named_parameters())
    where = places(named) if depth_factor != 1 else {}
    members: dict[tuple[Component, int, str, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            label, distance = where.get(name, ("", 0))
            key = component_of(name), distance, label, scales.get(name, 1.0), decays(parameter)
            members.setdefault(key, []).append((name, parameter))
    _check(own_rates, {key[0] for key in members})
    order = list(Component)
    return [
        {
            "params": members[key],
            "lr": (own_rates.get(component) or lr) * scale * depth_factor**distance,
            "weight_decay": config.weight_decay if decay else 0.0,
            "name": _name(component, label, scale, decay),
            # A string, because checkpoints are read with weights_only=True, which refuses enums.
            "component": component.value,
        }
        for key in sorted(members, key=lambda key: (order.index(key[0]), -key[1], key[3], not key[4]))
        for component, distance, label, scale, decay in (key,)
    ]


def learning_rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the rate of each group by name, those without decay under the name of the group that decays."""
    return {group["name"].removesuffix(NO_DECAY): group["lr"] for group in groups}


def sizes(groups: list[dict[str, Any]]) -> str:
    """Spells each group with its number of values, for the log."""
    return ", ".join(f"{group['name']} {sum(p.numel() for _, p in group['params']):,}" for group in groups)


def decays(parameter: nn.Parameter) -> bool:
    """Says whether weight decay applies: to what has two dimensions or more of a size above 1.

    So it leaves out scales that adapters keep as a column or row: DoRA's magnitudes of a convolution (1, out, 1, 1, 1),
    BOFT's and IA3's (out, 1), AdaLoRA's singular values (rank, 1). The two vectors of a LoRA of rank 1 do not decay
    either.

    Args:
        parameter: Under ZeRO-3 a flat shard, whose whole shape DeepSpeed keeps in `ds_shape`.
    """
    return sum(size > 1 for size in getattr(parameter, "ds_shape", parameter.shape)) >= 2


def _name(component: Component, label: str, scale: float, decay: bool) -> str:
    factor = "" if scale == 1 else f"x{scale:g}"
    return "_".join(part for part in (component.value, label, factor) if part) + ("" if decay else NO_DECAY)


def _check(own_rates: dict[Component, float | None], trained: set[Component]) -> None:
    if not trained:
        raise UserError("freeze: no parameter of the model trains; choose a freeze policy or a tuner that trains one")
    for component, rate in own_rates.items():
        if rate is not None and component not in trained:
            raise UserError(
                f"optim.{component.value}_lr={rate}: the {component.value} trains nothing under this freeze policy "
                f"and tuner; leave optim.{component.value}_lr=null or unfreeze it"
            )
