"""How schedules rise and fall: each curve is a function of the step alone, and gives a fraction of the peak rate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Ramp(Enum):
    """Course of the rise or the fall in warmup_stable_decay."""

    linear = "linear"
    cosine = "cosine"
    one_minus_sqrt = "one_minus_sqrt"


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of a run that a schedule covers."""

    warmup: int
    """Steps of warm-up, which are over at this step."""
    total: int
    """Steps in all."""

    def progress(self, step: int) -> float:
        """Returns the share of the steps after warm-up that are done, in [0, 1]."""
        return (step - self.warmup) / (self.total - self.warmup) if step < self.total else 1.0


Options = Mapping[str, Any]
"""What a schedule uses, by key below `optim.schedule`, and `floor`: its last rate as a fraction of the peak."""
Curve = Callable[[int, Span, Options], float]
"""Step, span and options to a fraction of the peak."""


def rise(step: int, span: Span, option: Options) -> float:
    """Linear warm-up from zero."""
    return step / span.warmup


def rise_from_share(step: int, span: Span, option: Options) -> float:
    """Linear warm-up that has its last step at the peak, from `warmup_lr_ratio` or one step above zero."""
    start = option["warmup_lr_ratio"]
    if start is None:
        return (step + 1) / span.warmup
    return start + (1.0 - start) * step / max(1, span.warmup - 1)


def rise_from_floor(step: int, span: Span, option: Options) -> float:
    """Warm-up from the floor after `warmup_shape`."""
    return _above(option["floor"], _fall(option["warmup_shape"], 1.0 - step / span.warmup, 0.5))


def constant(step: int, span: Span, option: Options) -> float:
    """The peak, always."""
    return 1.0


def linear(step: int, span: Span, option: Options) -> float:
    """A line to zero."""
    return 1.0 - span.progress(step)


def cosine(step: int, span: Span, option: Options) -> float:
    """`num_cycles` waves down to the floor; half a wave ends there."""
    return _above(option["floor"], _wave(option["num_cycles"] * span.progress(step)))


def cosine_ahead(step: int, span: Span, option: Options) -> float:
    """The cosine one step ahead, so that the last step already has the last rate."""
    return cosine(min(step + 1, span.total), span, option)


def cosine_with_restarts(step: int, span: Span, option: Options) -> float:
    """`num_cycles` half waves, each from the peak to zero."""
    progress = span.progress(step)
    # The end of the last cycle is the start of the next one that never comes: it is zero, not one.
    return 0.0 if progress >= 1 else _wave(0.5 * (option["num_cycles"] * progress % 1.0))


def polynomial(step: int, span: Span, option: Options) -> float:
    """(1 - progress) ** power above the floor."""
    return _above(option["floor"], (1.0 - span.progress(step)) ** option["power"])


def inverse_sqrt(step: int, span: Span, option: Options) -> float:
    """1 / sqrt(1 + steps after warm-up / timescale); the timescale is the warm-up, or 10,000 without one."""
    timescale = option["timescale"] or span.warmup or 10_000
    return 1.0 / math.sqrt((step + timescale - span.warmup) / timescale)


def stable_decay(step: int, span: Span, option: Options) -> float:
    """The peak for `stable_steps`, then a fall of `decay_steps` after `decay_shape`, then the floor."""
    stable, decay = stable_and_decay_steps(span, option)
    fallen = step - span.warmup - stable
    if fallen < 0:
        return 1.0
    if fallen >= decay:
        return float(option["floor"])
    return _above(option["floor"], _fall(option["decay_shape"], fallen / decay, option["num_cycles"]))


def stable_and_decay_steps(span: Span, option: Options) -> tuple[int, int]:
    """Returns both lengths; by default a tenth of the run decays (arXiv 2404.06395), the rest is stable."""
    decay = math.ceil(span.total / 10) if option["decay_steps"] is None else option["decay_steps"]
    stable = span.total - span.warmup - decay if option["stable_steps"] is None else option["stable_steps"]
    return stable, decay


def _fall(shape: Ramp, progress: float, cycles: float) -> float:
    return {Ramp.linear: 1.0 - progress, Ramp.cosine: _wave(cycles * progress)}.get(shape, 1.0 - math.sqrt(progress))


def _wave(cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles))


def _above(floor: float, share: float) -> float:
    return max(0.0, floor + (1.0 - floor) * share)
