"""Learning-rate schedules: linear warm-up from zero, then a decay to the end of the run.

At step s of N with W warm-up steps, the rate is its peak times s / W while s < W, then times a function of the progress
p = (s - W) / (N - W) in [0, 1]. Values equal those of `transformers.get_scheduler`, with two deviations: `polynomial`
ends at a fraction of the peak (`min_lr_ratio`, default 0), transformers' at an absolute 1e-7, which does not fit groups
with different rates; and past the last step every schedule holds its end value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from harness.errors import UserError, reject

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


class ScheduleName(Enum):
    """Shape of the learning rate over a run."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    cosine_with_restarts = "cosine_with_restarts"
    polynomial = "polynomial"
    cosine_with_min_lr = "cosine_with_min_lr"


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """How the learning rate of every parameter group moves over the run."""

    name: ScheduleName = ScheduleName.cosine
    """Shape: cosine, linear and polynomial decay to zero; cosine_with_min_lr to a fraction of the peak."""
    warmup_ratio: float = 0.0
    """Share of the run's steps, in [0, 1), in which the rate rises linearly from 0; rounded up to a whole step."""
    warmup_steps: int | None = None
    """The same in optimiser steps, in place of warmup_ratio."""
    num_cycles: int | None = None
    """cosine_with_restarts only: how many times the cosine runs from the peak to zero (None: 1)."""
    power: float | None = None
    """polynomial only: exponent of the decay; 1 is linear, 2 falls fast and ends slowly (None: 1)."""
    min_lr_ratio: float | None = None
    """Last rate as a fraction of the peak, in [0, 1) (None: 0.1 for cosine_with_min_lr, 0 for polynomial)."""

    def __post_init__(self) -> None:
        """Checks ranges, and refuses what the chosen schedule would ignore."""
        if not 0 <= self.warmup_ratio < 1:
            raise reject("optim.schedule.warmup_ratio", self.warmup_ratio, "must be in [0, 1)")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise reject("optim.schedule.warmup_steps", self.warmup_steps, "must be 0 or more")
        if self.warmup_steps is not None and self.warmup_ratio:
            raise reject(
                "optim.schedule.warmup_steps",
                self.warmup_steps,
                f"set warmup_ratio=0 with it, or leave it null: warmup_ratio={self.warmup_ratio} says it differently",
            )
        if self.name is ScheduleName.constant and (self.warmup_steps or self.warmup_ratio):
            raise reject("optim.schedule.name", "constant", "has no warm-up; use constant_with_warmup")
        for option, (in_range, remedy) in _RANGES.items():
            value = getattr(self, option)
            if value is None:
                continue
            if option not in _DEFAULTS.get(self.name, {}):
                users = ", ".join(name.value for name, defaults in _DEFAULTS.items() if option in defaults)
                raise reject(f"optim.schedule.{option}", value, f"{self.name.value} does not use it; only {users} does")
            if not in_range(value):
                raise reject(f"optim.schedule.{option}", value, remedy)


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "num_cycles": (lambda value: value >= 1, "must be 1 or more"),
    "power": (lambda value: 0 < value < math.inf, "must be above 0"),
    "min_lr_ratio": (lambda value: 0 <= value < 1, "must be in [0, 1)"),
}
"""The options that only some schedules use, with the test of their range."""

_DEFAULTS: dict[ScheduleName, dict[str, float]] = {
    ScheduleName.cosine_with_restarts: {"num_cycles": 1},
    ScheduleName.polynomial: {"power": 1.0, "min_lr_ratio": 0.0},
    ScheduleName.cosine_with_min_lr: {"min_lr_ratio": 0.1},
}
"""The options that each schedule uses, with their defaults; a schedule not named here uses none."""


def _constant(progress: float, option: dict[str, float]) -> float:
    return 1.0


def _linear(progress: float, option: dict[str, float]) -> float:
    return 1.0 - progress


def _cosine(progress: float, option: dict[str, float]) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _cosine_with_restarts(progress: float, option: dict[str, float]) -> float:
    # The end of the last cycle is the start of the next one that never comes: it is zero, not one.
    return 0.0 if progress >= 1 else _cosine(option["num_cycles"] * progress % 1.0, option)


def _polynomial(progress: float, option: dict[str, float]) -> float:
    floor = option["min_lr_ratio"]
    return floor + (1.0 - floor) * (1.0 - progress) ** option["power"]


def _cosine_with_min_lr(progress: float, option: dict[str, float]) -> float:
    floor = option["min_lr_ratio"]
    return floor + (1.0 - floor) * _cosine(progress, option)


_DECAY: dict[ScheduleName, Callable[[float, dict[str, float]], float]] = {
    ScheduleName.cosine: _cosine,
    ScheduleName.linear: _linear,
    ScheduleName.constant: _constant,
    ScheduleName.constant_with_warmup: _constant,
    ScheduleName.cosine_with_restarts: _cosine_with_restarts,
    ScheduleName.polynomial: _polynomial,
    ScheduleName.cosine_with_min_lr: _cosine_with_min_lr,
}


def num_warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Returns the optimiser steps of warm-up, a ratio rounded up as transformers does."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(config.warmup_ratio * total_steps)


def multiplier(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Returns the fraction of the peak learning rate that optimiser step `step` uses.

    Args:
        config: The schedule.
        step: Optimiser steps done before, 0 for the first step; `total_steps` gives the end value.
        total_steps: Optimiser steps of the whole run.
    """
    warmup = num_warmup_steps(config, total_steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (total_steps - warmup) if step < total_steps else 1.0
    defaults = _DEFAULTS.get(config.name, {})
    chosen = {option: getattr(config, option) for option in defaults}
    return _DECAY[config.name](progress, {key: defaults[key] if chosen[key] is None else chosen[key] for key in chosen})


def build_schedule(optimizer: "Optimizer", config: ScheduleConfig, total_steps: int) -> "LambdaLR":
    """Binds the schedule to an optimiser; step it once after each optimiser step.

    Args:
        optimizer: Its groups' `lr` are the peak rates.
        config: The schedule.
        total_steps: Optimiser steps of the whole run, at least 1.

    Raises:
        UserError: The warm-up is longer than the run, which would never reach its learning rate.
    """
    from torch.optim.lr_scheduler import LambdaLR

    warmup = num_warmup_steps(config, total_steps)
    if warmup > total_steps:
        raise UserError(
            f"optim.schedule.warmup_steps={warmup}: the run has {total_steps} steps; lower it or train for longer"
        )

    # A plain function on purpose: LambdaLR puts the state of any other callable into the checkpoint.
    def factor(step: int) -> float:
        return multiplier(config, step, total_steps)

    return LambdaLR(optimizer, factor)
