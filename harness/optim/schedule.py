"""Learning-rate schedules: a warm-up, then a decay to the end of the run.

At step s of N with W warm-up steps, the rate is its peak times s / W while s < W, then times a function of the step
(`harness/optim/curve.py`), or of the validations so far (`harness/optim/plateau.py`). Values equal those of
`transformers.get_scheduler` with the same options, with four deviations: an absolute `min_lr` holds for every group,
where transformers scales it with the group's rate; `polynomial` ends at zero, not at 1e-7; `reduce_lr_on_plateau` warms
up too; and past the last step every schedule holds its end value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, reject
from harness.optim import curve
from harness.optim.curve import Curve, Ramp, Span
from harness.optim.plateau import Plateau, Rule

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
    inverse_sqrt = "inverse_sqrt"
    cosine_with_min_lr = "cosine_with_min_lr"
    cosine_warmup_with_min_lr = "cosine_warmup_with_min_lr"
    warmup_stable_decay = "warmup_stable_decay"
    reduce_lr_on_plateau = "reduce_lr_on_plateau"


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """How the learning rate of every parameter group moves over the run."""

    name: ScheduleName = ScheduleName.cosine
    """Shape. Those with min_lr end there, inverse_sqrt and constant above zero, the others at zero."""
    warmup_ratio: float = 0.0
    """Share of the run's steps, in [0, 1), in which the rate rises linearly from 0; rounded up to a whole step."""
    warmup_steps: int | None = None
    """The same in optimiser steps, in place of warmup_ratio."""
    num_cycles: float | None = None
    """Waves of a cosine (None: 0.5, once down); with cosine_with_restarts, whole restarts from the peak (None: 1)."""
    power: float | None = None
    """polynomial: exponent of the decay; 1 is linear, 2 falls fast and ends slowly (None: 1)."""
    min_lr_ratio: float | None = None
    """Last rate as a fraction of the peak, in [0, 1) (None: 0.1 for cosines, else 0)."""
    min_lr: float | None = None
    """The last rate itself, in place of min_lr_ratio; the same for every component."""
    timescale: int | None = None
    """inverse_sqrt: steps after which the rate has fallen to 1 / sqrt(2) (None: those of the warm-up, else 10,000)."""
    warmup_lr_ratio: float | None = None
    """cosine_warmup_with_min_lr: first rate as a fraction of the peak (None: one over the warm-up's steps)."""
    stable_steps: int | None = None
    """warmup_stable_decay: optimiser steps at the peak (None: all between warm-up and decay)."""
    decay_steps: int | None = None
    """warmup_stable_decay: optimiser steps from the peak to the last rate (None: a tenth of the run)."""
    warmup_shape: Ramp | None = None
    """warmup_stable_decay: course of the warm-up, which begins at the last rate (None: linear)."""
    decay_shape: Ramp | None = None
    """warmup_stable_decay: course of the decay (None: cosine)."""
    factor: float | None = None
    """reduce_lr_on_plateau: what rates are multiplied by when trainer.monitor stops getting better (None: 0.1)."""
    patience: int | None = None
    """reduce_lr_on_plateau: validations in a row that may be no better before the rate falls (None: 10)."""
    threshold: float | None = None
    """reduce_lr_on_plateau: share of the best value by which a validation has to beat it (None: 1e-4)."""
    cooldown: int | None = None
    """reduce_lr_on_plateau: validations after a fall that do not count (None: 0)."""

    def __post_init__(self) -> None:
        """Checks ranges, and refuses what the chosen schedule would ignore."""
        self._check_warmup()
        for option in _RANGES:
            value = getattr(self, option)
            if value is None:
                continue
            if option not in _OPTIONS[self.name]:
                users = ", ".join(name.value for name, defaults in _OPTIONS.items() if option in defaults)
                raise reject(f"optim.schedule.{option}", value, f"{self.name.value} does not use it; used by {users}")
            in_range, remedy = _RANGES[option]
            if not in_range(value):
                raise reject(f"optim.schedule.{option}", value, remedy)
        if self.min_lr is not None and self.min_lr_ratio is not None:
            raise reject("optim.schedule.min_lr", self.min_lr, "stands in place of min_lr_ratio: give one of them")
        if self.name is ScheduleName.cosine_with_restarts and self.num_cycles and self.num_cycles % 1:
            raise reject("optim.schedule.num_cycles", self.num_cycles, "must be a whole number of restarts")

    def _check_warmup(self) -> None:
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


_FROM_ONE: tuple[Callable[[float], bool], str] = (lambda value: value >= 1, "must be 1 or more")
_FROM_ZERO: tuple[Callable[[float], bool], str] = (lambda value: value >= 0, "must be 0 or more")
_POSITIVE: tuple[Callable[[float], bool], str] = (lambda value: 0 < value < math.inf, "must be above 0")
_SHARE: tuple[Callable[[float], bool], str] = (lambda value: 0 <= value < 1, "must be in [0, 1)")
_ANY: tuple[Callable[[Any], bool], str] = (lambda value: True, "")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_cycles": _POSITIVE,
    "power": _POSITIVE,
    "min_lr_ratio": _SHARE,
    "min_lr": (lambda value: 0 <= value < math.inf, "must be 0 or more"),
    "timescale": _FROM_ONE,
    "warmup_lr_ratio": _SHARE,
    "stable_steps": _FROM_ZERO,
    "decay_steps": _FROM_ZERO,
    "warmup_shape": _ANY,
    "decay_shape": _ANY,
    "factor": (lambda value: 0 < value < 1, "must be above 0 and below 1"),
    "patience": _FROM_ZERO,
    "threshold": _SHARE,
    "cooldown": _FROM_ZERO,
}
"""The options that only some schedules use, with the test of their range."""

_FLOOR = {"min_lr_ratio": 0.0, "min_lr": None}
_FLOOR_OF_COSINES = {"num_cycles": 0.5, "min_lr_ratio": 0.1, "min_lr": None}

_OPTIONS: dict[ScheduleName, dict[str, Any]] = {
    ScheduleName.cosine: {"num_cycles": 0.5},
    ScheduleName.linear: {},
    ScheduleName.constant: {},
    ScheduleName.constant_with_warmup: {},
    ScheduleName.cosine_with_restarts: {"num_cycles": 1},
    ScheduleName.polynomial: {"power": 1.0, **_FLOOR},
    ScheduleName.inverse_sqrt: {"timescale": None},
    ScheduleName.cosine_with_min_lr: _FLOOR_OF_COSINES,
    ScheduleName.cosine_warmup_with_min_lr: {"warmup_lr_ratio": None, **_FLOOR_OF_COSINES},
    ScheduleName.warmup_stable_decay: {
        "stable_steps": None,
        "decay_steps": None,
        "warmup_shape": Ramp.linear,
        "decay_shape": Ramp.cosine,
        "num_cycles": 0.5,
        **_FLOOR,
    },
    ScheduleName.reduce_lr_on_plateau: {"factor": 0.1, "patience": 10, "threshold": 1e-4, "cooldown": 0, **_FLOOR},
}
"""The options that each schedule uses, with their defaults: those of transformers and torch."""

_DECAY: dict[ScheduleName, Curve] = {
    ScheduleName.cosine: curve.cosine,
    ScheduleName.linear: curve.linear,
    ScheduleName.constant: curve.constant,
    ScheduleName.constant_with_warmup: curve.constant,
    ScheduleName.cosine_with_restarts: curve.cosine_with_restarts,
    ScheduleName.polynomial: curve.polynomial,
    ScheduleName.inverse_sqrt: curve.inverse_sqrt,
    ScheduleName.cosine_with_min_lr: curve.cosine,
    ScheduleName.cosine_warmup_with_min_lr: curve.cosine_ahead,
    ScheduleName.warmup_stable_decay: curve.stable_decay,
}
"""What follows the warm-up, by step; reduce_lr_on_plateau follows the validations instead."""

_RISE: dict[ScheduleName, Curve] = {
    ScheduleName.cosine_warmup_with_min_lr: curve.rise_from_share,
    ScheduleName.warmup_stable_decay: curve.rise_from_floor,
}
"""Warm-ups that are not a line from zero."""


def num_warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Returns the optimiser steps of warm-up, a ratio rounded up as transformers does."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(config.warmup_ratio * total_steps)


def multiplier(config: ScheduleConfig, step: int, total_steps: int, peak: float = 1.0) -> float:
    """Returns the fraction of the peak learning rate that optimiser step `step` uses.

    Args:
        config: A schedule that follows the step alone: any but reduce_lr_on_plateau.
        step: Optimiser steps done before, 0 for the first step; `total_steps` gives the end value.
        total_steps: Optimiser steps of the whole run.
        peak: The group's peak learning rate, which an absolute `min_lr` is a fraction of.
    """
    span = Span(num_warmup_steps(config, total_steps), total_steps)
    move = _RISE.get(config.name, curve.rise) if step < span.warmup else _DECAY[config.name]
    return move(min(step, total_steps), span, _chosen(config, peak))


def build_schedule(optimizer: "Optimizer", config: ScheduleConfig, total_steps: int) -> "LambdaLR":
    """Binds the schedule to an optimiser; step it once after each optimiser step.

    Args:
        optimizer: Its groups' `lr` are the peak rates.
        config: The schedule.
        total_steps: Optimiser steps of the whole run, at least 1.

    Raises:
        UserError: The schedule is longer than the run, or its last rate is above the peak of a group.
    """
    from torch.optim.lr_scheduler import LambdaLR

    _check_length(config, total_steps)
    peaks = [group["lr"] for group in optimizer.param_groups]
    if config.min_lr is not None and config.min_lr > min(peaks):
        raise reject("optim.schedule.min_lr", config.min_lr, f"the lowest peak rate is {min(peaks)}; give less")
    return LambdaLR(optimizer, [_factor(config, total_steps, peak) for peak in peaks])


def _factor(config: ScheduleConfig, total_steps: int, peak: float) -> Callable[[int], float]:
    """Returns what a LambdaLR calls with the step.

    A plain function where nothing but the step counts: LambdaLR puts the state of any other callable into the
    checkpoint.
    """
    if config.name is ScheduleName.reduce_lr_on_plateau:
        chosen = _chosen(config, peak)
        rule = Rule(**{key: chosen[key] for key in ("factor", "patience", "threshold", "cooldown", "floor")})
        return Plateau(rule, num_warmup_steps(config, total_steps))
    return lambda step: multiplier(config, step, total_steps, peak)


def _chosen(config: ScheduleConfig, peak: float) -> dict[str, Any]:
    """Returns the options that the schedule uses, defaults filled in, and the floor as a fraction of the peak."""
    given = {option: getattr(config, option) for option in _OPTIONS[config.name]}
    chosen = {key: _OPTIONS[config.name][key] if value is None else value for key, value in given.items()}
    floor = chosen.get("min_lr_ratio", 0.0) if chosen.get("min_lr") is None else chosen["min_lr"] / peak
    return chosen | {"floor": floor}


def _check_length(config: ScheduleConfig, total_steps: int) -> None:
    warmup = num_warmup_steps(config, total_steps)
    if warmup > total_steps:
        raise UserError(
            f"optim.schedule.warmup_steps={warmup}: the run has {total_steps} steps; lower it or train for longer"
        )
    if config.name is ScheduleName.warmup_stable_decay:
        stable, decay = curve.stable_and_decay_steps(Span(warmup, total_steps), _chosen(config, 1.0))
        if stable < 0 or warmup + stable + decay > total_steps:
            raise UserError(
                f"optim.schedule.decay_steps={decay}: with {warmup} steps of warm-up and {max(stable, 0)} stable ones "
                f"it ends after the run's {total_steps}; lower one of them or train for longer"
            )
