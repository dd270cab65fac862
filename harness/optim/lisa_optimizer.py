"""AdamW that trains a few decoder layers at a time; what it follows is in `harness.optim.lisa`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW


class Lisa(AdamW):
    """Knows every layer's parameters, and takes `requires_grad` from those of layers that are not active.

    So no gradient is computed for them, and without one AdamW neither moves nor decays them. The number of steps taken
    stands in every group, and from it alone follows which layers are active: a loaded state brings its own.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        layers: dict[int, list[nn.Parameter]],
        *,
        count: int,
        interval: int,
        seed: int,
        keeps_state: bool,
        **adamw: Any,
    ) -> None:
        """Activates the layers of the first steps.

        Args:
            groups: All that trains, parameters of all layers among them.
            layers: By number, the parameters of the layers that take turns.
            count: Layers active at a time.
            interval: Steps between two choices.
            seed: Of the choices.
            keeps_state: Whether the running means of a layer outlive its turn.
            adamw: Betas, eps and kernel of torch's AdamW.
        """
        self.layers, self.count, self.interval = layers, count, interval
        self.seed, self.keeps_state = seed, keeps_state
        self.active: tuple[int, ...] = ()
        super().__init__([group | {"num_steps": 0} for group in groups], **adamw)
        self._activate()

    def chosen(self, num_steps: int) -> tuple[int, ...]:
        """Returns the layers that are active after a number of steps; a function of it and of the settings alone."""
        draws = np.random.default_rng([self.seed, num_steps // self.interval])
        return tuple(sorted(draws.choice(sorted(self.layers), self.count, replace=False).tolist()))

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """Takes a step, and changes the active layers where an interval ends."""
        loss = super().step(closure)
        for group in self.param_groups:
            group["num_steps"] += 1
        if self.param_groups[0]["num_steps"] % self.interval == 0:
            self._activate()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` returned, and activates the layers that were active then."""
        super().load_state_dict(state_dict)
        self._activate()

    @torch.no_grad()
    def _activate(self) -> None:
        self.active = self.chosen(self.param_groups[0]["num_steps"])
        for number, parameters in self.layers.items():
            for parameter in parameters:
                parameter.requires_grad_(number in self.active)
                if number not in self.active:
                    parameter.grad = None
                    if not self.keeps_state:
                        self.state.pop(parameter, None)
