"""Adam's arithmetic on tensors and states that an optimiser of our own holds, by torch's kernels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from harness.optim.adamw import choose_kernel

State = dict[str, Any]
"""What an optimiser knows of one parameter: tensors, numbers, lists and dicts."""


def init_moments(state: State, like: Tensor) -> None:
    """Adds zero moments of the shape, dtype and device of a tensor, and the count of steps that debiases them."""
    state["step"] = torch.zeros((), device=like.device)
    state["exp_avg"] = torch.zeros_like(like, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = torch.zeros_like(like, memory_format=torch.preserve_format)


def adamw_(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], group: Mapping[str, Any]
) -> None:
    """Takes one step of AdamW, in place.

    Args:
        parameters: What is updated.
        gradients: Of the same shapes and dtypes.
        states: With `step`, `exp_avg` and `exp_avg_sq`; updated too.
        group: With `lr`, `weight_decay`, `betas` and `eps`.
    """
    beta1, beta2 = group["betas"]
    adam(
        list(parameters),
        list(gradients),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        **choose_kernel(parameters),  # type: ignore[arg-type]
        decoupled_weight_decay=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def adam_direction(gradient: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Updates the moments and returns (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), of the gradient's shape."""
    if "step" not in state:
        init_moments(state, gradient)
    direction = torch.zeros_like(gradient)
    adamw_([direction], [gradient], [state], {**group, "lr": -1.0, "weight_decay": 0.0})
    return direction
