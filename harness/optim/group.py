"""Parameter groups: a learning rate for each component of the model, and no weight decay on vectors.

Norm weights, biases and the magnitudes of DoRA are scales and offsets: pulling them to zero regularises nothing and
fights the normalisation (the rule of GPT-3, arXiv 2005.14165, and of transformers' Trainer).
"""

from typing import Any

from torch import nn

from harness.errors import UserError
from harness.model.component import Component, component_of


def parameter_groups(
    model: nn.Module, *, lr: float, vit_lr: float | None, aligner_lr: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Splits the trainable parameters by component and by whether they decay.

    Freezing is the caller's and done before: a parameter that does not require a gradient is in no group.

    Args:
        model: A Qwen3-VL, with or without PEFT's wrapper.
        lr: Peak learning rate of the language model, and of what has none of its own.
        vit_lr: Peak learning rate of the vision tower; None: `lr`.
        aligner_lr: Peak learning rate of the mergers; None: `lr`.
        weight_decay: Decoupled weight decay of the groups that decay; the others get 0.

    Returns:
        Groups for a torch optimiser in the order llm, aligner, vit, each with `params` in the model's order, `lr`,
        `weight_decay`, `name` (`llm`, `llm_no_decay`, ...) and `component`. Tied parameters stand once.

    Raises:
        UserError: Nothing trains, or a component with a learning rate of its own trains nothing.
    """
    own_rates = {Component.aligner: aligner_lr, Component.vit: vit_lr}
    members: dict[tuple[Component, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((component_of(name), decays(name, parameter)), []).append(parameter)
    _check(own_rates, {component for component, _ in members})
    return [
        {
            "params": members[component, decay],
            "lr": lr if own_rates.get(component) is None else own_rates[component],
            "weight_decay": weight_decay if decay else 0.0,
            "name": component.value if decay else f"{component.value}_no_decay",
            # A string, because checkpoints are read with weights_only=True, which refuses enums.
            "component": component.value,
        }
        for component in Component
        for decay in (True, False)
        if (component, decay) in members
    ]


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
