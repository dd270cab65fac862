"""GaLore's update of one matrix; see `harness.optim.galore`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from harness.optim.adam_kernel import State, adam_direction
from harness.optim.galore import GaloreConfig, ProjectionType
from harness.optim.projection import project, project_back, singular_bases


def update(config: GaloreConfig, name: str, weight: nn.Parameter, state: State, group: dict[str, Any]) -> None:
    """Updates a weight and its state in place.

    Args:
        config: Rank, interval, scale and sides.
        name: Not looked at.
        weight: m x n, with its gradient.
        state: Empty at first; then `age` in steps, the bases `left` and `right`, and Adam's moments.
        group: With `lr`, `weight_decay`, `betas` and `eps`.
    """
    assert weight.grad is not None
    age = state.get("age", 0)
    if age % config.update_proj_gap == 0:
        state |= singular_bases(weight.grad, config.rank, sides_of(config.proj_type, weight))
    state["age"] = age + 1
    direction = adam_direction(project(weight.grad, state), state, group)
    descend(weight, direction, state, group, config.scale)


def sides_of(kind: ProjectionType, weight: Tensor) -> tuple[str, ...]:
    """Returns the sides of a weight (m x n) that are projected; as in the authors' code, a square one has m >= n."""
    if kind is ProjectionType.full:
        return ("left", "right")
    if kind in (ProjectionType.left, ProjectionType.right):
        return (kind.name,)
    tall = weight.shape[-2] >= weight.shape[-1]
    return ("right",) if tall is (kind is ProjectionType.std) else ("left",)


def descend(
    weight: Tensor, direction: Tensor, bases: Mapping[str, Tensor], group: Mapping[str, Any], scale: float
) -> None:
    """Decays a weight and subtracts the direction, given in the coordinates of the bases, in place."""
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.add_(project_back(direction, bases), alpha=-group["lr"] * scale)
