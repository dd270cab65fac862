"""What every optimiser has: learning rates by component, weight decay, clipping and the schedule."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.optim.footprint import Footprint, Trained
from harness.optim.schedule import ScheduleConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Shared fields; an optimiser extends it by fields only. Defaults are those of ms-swift 4.6."""

    full_only: ClassVar[bool] = False
    """Whether the optimiser makes sense for the weights of the model alone, and is refused for adapters."""

    elementwise: ClassVar[bool] = False
    """Whether a value's update follows from its own gradient and state alone, so that parts of a matrix train apart."""
    averages: ClassVar[bool] = False
    """Whether the weights to use are an average that the optimiser keeps beside those that it trains."""
    skips_parameters: ClassVar[bool] = False
    """Whether some of what trains gets no gradient in a step, which several processes have to be told."""
    rewrites_gradients: ClassVar[bool] = False
    """Whether a step leaves something else in the place of gradients, so that nothing may read them after it."""

    lr: float | None = None
    """Peak learning rate. None: 1e-4 when adapters train (9e-4 of reft), 1e-5 for full and llamapro."""
    vit_lr: float | None = None
    """Peak learning rate of what trains in the vision tower. None: lr. Refused where the vision tower is frozen."""
    aligner_lr: float | None = None
    """Peak learning rate of what trains in the mergers. None: lr. Refused where the mergers are frozen."""
    layer_decay: float | None = None
    """Factor on the learning rate per layer below the top of its tower, in (0, 1]; usual: 0.8 to 0.95. null: none."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, a step: weights shrink by lr x this. Vectors never decay."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this global norm where theirs is larger. None or 0: no clipping."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Warm-up and decay of the learning rates."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for key in ("lr", "vit_lr", "aligner_lr"):
            rate = getattr(self, key)
            if rate is not None and not 0 < rate < math.inf:
                raise reject(f"optim.{key}", rate, "must be above 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise reject("optim.layer_decay", self.layer_decay, "must be in (0, 1], or null for equal rates")
        if not 0 <= self.weight_decay < math.inf:
            raise reject("optim.weight_decay", self.weight_decay, "must be 0 or more")
        if self.max_grad_norm is not None and not 0 <= self.max_grad_norm < math.inf:
            raise reject("optim.max_grad_norm", self.max_grad_norm, "must be above 0, or null for no clipping")

    def footprint(self, trained: Trained) -> Footprint:
        """Returns what gradients and state will take."""
        return Footprint(sum(p.nbytes for _, p in trained), sum(self.state_of(*item) for item in trained))

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of state for a parameter: two running means of its type."""
        return 2 * parameter.nbytes


def check_betas(*betas: tuple[str, float]) -> None:
    """Refuses a decay rate of a running mean outside [0, 1).

    Args:
        betas: Name of the key below `optim`, and its value.

    Raises:
        UserError: One is out of range.
    """
    for key, value in betas:
        if not 0 <= value < 1:
            raise reject(f"optim.{key}", value, "must be in [0, 1)")


def check_eps(eps: float) -> None:
    """Refuses an `optim.eps` that is not a positive number.

    Raises:
        UserError: It is out of range.
    """
    if not 0 < eps < math.inf:
        raise reject("optim.eps", eps, "must be above 0")
