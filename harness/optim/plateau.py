"""Learning rates that fall when validation stops getting better, as `torch.optim.lr_scheduler.ReduceLROnPlateau`.

A validation is better when it beats the best by more than `threshold` of it. After more than `patience` others in a row
the rates are multiplied by `factor`, not below the floor, and the next `cooldown` validations do not count. Deviation:
torch leaves out a reduction of less than 1e-8, which fits no group with a small rate; here none is left out.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, slots=True)
class Rule:
    """When the rate falls, and by how much."""

    factor: float
    patience: int
    threshold: float
    cooldown: int
    floor: float
    """Lowest rate as a fraction of the peak."""


class Plateau:
    """The factor of one parameter group, for a LambdaLR.

    LambdaLR keeps the `__dict__` of a callable in the checkpoint: here that is what changes in a run, and nothing else.
    """

    __slots__ = ("__dict__", "_rule", "_warmup")

    def __init__(self, rule: Rule, warmup: int) -> None:
        """Args: the rule, and the steps of linear warm-up from zero."""
        self._rule = rule
        self._warmup = warmup
        self.scale = 1.0
        self.best = math.inf
        self.num_bad = 0
        self.num_resting = 0

    def __call__(self, step: int) -> float:
        """Returns the fraction of the peak rate for a step."""
        return step / self._warmup * self.scale if step < self._warmup else self.scale

    def update(self, badness: float) -> bool:
        """Takes a validation, lower is better and NaN is never better; says whether the rate fell."""
        if badness < self.best - self._rule.threshold * (abs(self.best) if math.isfinite(self.best) else 0.0):
            self.best, self.num_bad = badness, 0
        else:
            self.num_bad += 1
        if self.num_resting:
            self.num_resting, self.num_bad = self.num_resting - 1, 0
        if self.num_bad <= self._rule.patience:
            return False
        before, self.scale = self.scale, max(self.scale * self._rule.factor, self._rule.floor)
        self.num_resting, self.num_bad = self._rule.cooldown, 0
        return self.scale < before


def tell(schedule: "LambdaLR", badness: float) -> bool:
    """Tells a schedule of a validation and says whether rates fell; a schedule of another kind does not listen."""
    listening = [factor for factor in schedule.lr_lambdas if isinstance(factor, Plateau)]
    # Every group's, and not those up to the first that fell.
    fell = [factor.update(badness) for factor in listening]
    return any(fell)
