"""What LoRA and DoRA have beyond rank and scale: patterns of both, rsLoRA's scale, biases, LoRA+'s learning rates."""

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.tuner.low_rank import LowRankConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.tuned import Tuned


class Bias(Enum):
    """Which biases train beside the adapters."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


@dataclass(kw_only=True, slots=True)
class LoraLikeConfig(LowRankConfig):
    """Shared fields; a method extends it by fields only."""

    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Rank by layer: a regular expression that the end of a layer's name matches, from a dot on. The first counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alpha by layer, written as rank_pattern."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable (arXiv 2312.03732)."""
    bias: Bias = Bias.none
    """Biases that train too: none, all, or lora_only (of the layers that have an adapter)."""
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


def wrap_lora(loaded: "Loaded", policy: "Policy", config: LoraLikeConfig, **options: Any) -> "Tuned":
    """Wraps a base model with PEFT's LoRA.

    Args:
        loaded: The frozen base model.
        policy: Where adapters may go.
        config: Rank, scale, targets and biases.
        options: More fields of PEFT's LoraConfig.

    Raises:
        UserError: As for `wrap`, or biases are to train and there are none.
    """
    from peft import LoraConfig

    from harness.tuner.layer_plan import lora_plus_scales
    from harness.tuner.peft_adapter import count_biases, wrap

    tuned = wrap(
        loaded,
        policy,
        config,
        LoraConfig,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        use_rslora=config.rslora,
        bias=config.bias.name,
        **options,
    )
    if config.bias is not Bias.none and not count_biases(tuned.model):
        raise reject("tuner.bias", config.bias.name, "what the freeze policy leaves free has no biases; use none")
    tuned.lr_scales = lora_plus_scales(tuned.model, config.lora_plus_ratio)
    return tuned
