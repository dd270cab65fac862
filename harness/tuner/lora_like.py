"""What LoRA and DoRA have beyond rank and scale: patterns of both, and LoRA+'s ratio of learning rates."""

import math
import re
from dataclasses import dataclass, field

from harness.errors import reject
from harness.tuner.low_rank import LowRankConfig


@dataclass(kw_only=True, slots=True)
class LoraLikeConfig(LowRankConfig):
    """Shared fields; a method extends it by fields only."""

    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Rank by layer: a regular expression that the end of a layer's name matches, from a dot on. The first counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alpha by layer, written as rank_pattern."""
    lora_plus_ratio: float | None = None
    """LoRA+ (arXiv 2402.12354): B's learning rate is this times A's, in every component; the paper uses 16. Null: 1."""
    fused: bool = True
    """Train layers that share their input as one product, with one dropout mask: faster. false runs PEFT's modules."""

    def __post_init__(self) -> None:
        LowRankConfig.__post_init__(self)
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern, value in getattr(self, key).items():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise reject(f"tuner.{key}", pattern, f"is no regular expression ({error})") from error
                if not 0 < value < math.inf:
                    raise reject(f"tuner.{key}.{pattern}", value, "must be more than 0")
        if self.lora_plus_ratio is not None and not 0 < self.lora_plus_ratio < math.inf:
            raise reject("tuner.lora_plus_ratio", self.lora_plus_ratio, "must be more than 0, or null for one rate")
