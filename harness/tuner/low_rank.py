"""What every low-rank adapter has: rank, scale and dropout."""

import math
from dataclasses import dataclass
from typing import ClassVar

from harness.errors import reject
from harness.tuner.targeted import TargetedConfig


@dataclass(kw_only=True, slots=True)
class LowRankConfig(TargetedConfig):
    """Shared fields; a method extends it by fields only. Defaults: ms-swift's guide for Qwen3-VL."""

    size: ClassVar[str] = "rank"
    rank: int = 8
    """Rank of the update. More is more capacity, memory and time."""
    alpha: float = 32.0
    """Scale of the update: alpha / rank, or alpha / sqrt(rank) with rslora."""
    dropout: float = 0.05
    """Probability of dropping an input of the adapter, 0 to 1."""

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        if self.rank < 1:
            raise reject("tuner.rank", self.rank, "must be 1 or more")
        if not 0 < self.alpha < math.inf:
            raise reject("tuner.alpha", self.alpha, "must be more than 0")
        check_dropout(self.dropout)


def check_dropout(dropout: float) -> None:
    """Refuses a `tuner.dropout` that is no probability, or 1.

    Raises:
        UserError: It is out of range.
    """
    if not 0 <= dropout < 1:
        raise reject("tuner.dropout", dropout, "must be at least 0 and less than 1")
