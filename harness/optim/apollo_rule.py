"""APOLLO's update of one matrix; see `harness.optim.apollo`."""

from typing import Any

import torch
from torch import Tensor, nn

from harness.optim.adam_kernel import State, adam_direction
from harness.optim.apollo import ApolloConfig, ScaleType
from harness.optim.projection import project, random_basis, seed_of


def update(config: ApolloConfig, name: str, weight: nn.Parameter, state: State, group: dict[str, Any]) -> None:
    """Updates a weight and its state in place.

    Args:
        config: Rank, interval, scale and what shares a factor.
        name: Of the weight: seeds its projections, with the run's seed.
        weight: m x n, with its gradient.
        state: Empty at first; then `age` in steps, the `seed` of the projection, Adam's moments and the last `norm`.
        group: With `lr`, `weight_decay`, `betas` and `eps`.
    """
    gradient = weight.grad
    assert gradient is not None
    age = state.get("age", 0)
    if age % config.update_proj_gap == 0:
        state["seed"] = seed_of(config.proj_seed, name, age)
    state["age"] = age + 1
    side = "right" if gradient.shape[-2] >= gradient.shape[-1] else "left"
    low = project(gradient, random_basis(gradient, config.rank, side, state["seed"]))
    factors = scaling(low, adam_direction(low, state, group), _shared(config, side), group["eps"])
    if config.norm_growth is not None:
        factors = factors * _limit(gradient, factors, state, config.norm_growth)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.addcmul_(gradient, factors.to(gradient.dtype), value=-group["lr"] * config.scale)


def scaling(low: Tensor, direction: Tensor, shared: tuple[int, ...], eps: float) -> Tensor:
    """Returns |direction| / |low| over the dimensions that share a factor, which stay with a size of 1."""
    lengths = [torch.linalg.vector_norm(item, dim=shared, keepdim=True) for item in (direction, low)]
    return lengths[0] / (lengths[1] + eps)


def _shared(config: ApolloConfig, side: str) -> tuple[int, ...]:
    if config.scale_type is ScaleType.tensor:
        return (-2, -1)
    return (-1,) if side == "right" else (-2,)


def _limit(gradient: Tensor, factors: Tensor, state: State, growth: float) -> Tensor:
    """Returns the factor, at most 1, that keeps the norm of the scaled gradient within its growth, and notes the norm.

    A norm of zero, as in a step whose rows show no image, sets no limit on the next one.
    """
    lengths = torch.linalg.vector_norm(gradient, dim=_reduced(factors), keepdim=True, dtype=factors.dtype)
    norm = torch.linalg.vector_norm(lengths * factors)
    last = state.get("norm", torch.zeros_like(norm))
    limit = torch.where(last > 0, (growth * last / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0), 1.0)
    state["norm"] = norm * limit
    return limit


def _reduced(factors: Tensor) -> tuple[int, ...]:
    return tuple(dim for dim in (-2, -1) if factors.shape[dim] == 1)
