"""Parameter groups: a learning rate for each component of the model, and no weight decay on vectors.

Norm weights, biases and the magnitudes of DoRA are scales and offsets: pulling them to zero regularises nothing and
fights the normalisation (the rule of GPT-3, arXiv 2005.14165, and of transformers' Trainer).
"""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.optim.config import OptimConfig

log = logging.getLogger(__name__)

NO_DECAY = "_no_decay"
"""End of the name of a group whose weights do not decay; its learning rate is that of the group without it."""


def parameter_groups(
    model: nn.Module, config: OptimConfig, lr: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Splits the trainable parameters by component, by the factor on their learning rate, and by whether they decay.

    Freezing is the caller's and done before: a parameter that does not require a gradient is in no group.

    Args:
        model: A Qwen3-VL, with or without PEFT's wrapper.
        config: Rates and weight decay.
        lr: Peak learning rate where a component has none of its own; the caller resolved `config.lr`.
        lr_scales: By parameter name, the factor on the rate of its component (LoRA+'s ratio for B); 1 where absent.

    Returns:
        Groups for a torch optimiser in the order llm, aligner, vit, each with `params` as (name, parameter) in the
        model's order, `lr`, `weight_decay`, `name` (`llm`, `llm_no_decay`, `llm_x16`, ...) and `component`. Tied
        parameters stand once.

    Raises:
        UserError: Nothing trains, or a component with a learning rate of its own trains nothing.
    """
    own_rates = {Component.aligner: config.aligner_lr, Component.vit: config.vit_lr}
    scales = lr_scales or {}
    members: dict[tuple[Component, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = component_of(name), scales.get(name, 1.0), decays(name, parameter)
            members.setdefault(key, []).append((name, parameter))
    _check(own_rates, {component for component, _, _ in members})
    order = list(Component)
    groups: list[dict[str, Any]] = [
        {
            "params": members[component, scale, decay],
            "lr": (own_rates.get(component) or lr) * scale,
            "weight_decay": config.weight_decay if decay else 0.0,
            "name": component.value + ("" if scale == 1 else f"_x{scale:g}") + ("" if decay else NO_DECAY),
            # A string, because checkpoints are read with weights_only=True, which refuses enums.
            "component": component.value,
        }
        for component, scale, decay in sorted(members, key=lambda key: (order.index(key[0]), key[1], not key[2]))
    ]
    sizes = ", ".join(f"{group['name']} {sum(p.numel() for _, p in group['params']):,}" for group in groups)
    log.info("optimizer groups: %s", sizes)
    return groups


def learning_rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the rate of each group by name, those without decay under the name of the group that decays."""
    return {group["name"].removesuffix(NO_DECAY): group["lr"] for group in groups}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Says whether weight decay applies: to matrices, not to vectors, nor to DoRA's magnitudes of any shape.

    Args:
        name: Qualified name; DoRA on a convolution keeps its magnitude vector as a tensor of 5 dimensions.
        parameter: Under ZeRO-3 a flat shard, whose whole shape DeepSpeed keeps in `ds_shape`.
    """
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) >= 2 and "lora_magnitude_vector" not in name


def _check(own_rates: dict[Component, float | None], trained: set[Component]) -> None:
    if not trained:
        raise UserError("freeze: no parameter of the model trains; choose a freeze policy or a tuner that trains one")
    for component, rate in own_rates.items():
        if rate is not None and component not in trained:
            raise UserError(
                f"optim.{component.value}_lr={rate}: the {component.value} trains nothing under this freeze policy "
                f"and tuner; leave optim.{component.value}_lr=null or unfreeze it"
            )
