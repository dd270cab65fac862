"""The update of Lion; formula and paper are in `harness.optim.lion`."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

_PART = 2**27
"""Values that are updated together: the direction of all of a model would take as much memory as its gradients."""


def in_parts(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yields parameters in order, as many together as have no more values than `_PART`, and at least one."""
    part: list[torch.Tensor] = []
    size = 0
    for parameter in parameters:
        if part and size + parameter.numel() > _PART:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel()
    if part:
        yield part


class Lion(Optimizer):
    """One running mean a parameter, in the parameter's type; the update is a sign, so each value moves by lr."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        """Args: groups with `lr` and `weight_decay`, and the two factors of the running mean."""
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step; `closure` computes loss and gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for active in in_parts([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._update(group, active)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        means = [self.state[parameter]["mean"] for parameter in parameters]
        directions = torch._foreach_lerp(means, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])
        torch._foreach_lerp_(means, gradients, 1 - beta2)
