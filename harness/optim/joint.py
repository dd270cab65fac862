"""Several torch optimisers as one, for a loop and a checkpoint that know of one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class Joint(Optimizer):
    """Holds the groups and the state that its parts step on: the same objects, so that either side may change them.

    A checkpoint is that of one optimiser with all the groups, in the order of the parts.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """Args: the parts, before their first step."""
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # A gradient scaler asks the optimiser that it is given, which is this one, and not a part's fused kernel.
        self._step_supports_amp_scaling = False
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Lets each part take its step; `closure` computes loss and gradients anew, once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Hands its groups and state to the parts; torch makes new ones when it loads."""
        start = 0
        for part in self.parts:
            part.state = self.state
            part.param_groups = self.param_groups[start : start + len(part.param_groups)]
            start += len(part.param_groups)
