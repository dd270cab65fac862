"""What every low-rank adapter has: rank, scale, dropout, targets and the adapter's dtype."""

from dataclasses import dataclass, field

from harness.errors import reject
from harness.tuner.trained_dtype import TrainedDtype


@dataclass(kw_only=True, slots=True)
class LowRankConfig:
    """Shared fields; a method extends it by fields only. Defaults: ms-swift's guide for Qwen3-VL."""

    rank: int = 8
    """Rank of the update. More is more capacity, memory and time."""
    alpha: float = 32.0
    """Scale of the update: alpha / rank, or alpha / sqrt(rank) with rslora."""
    dropout: float = 0.05
    """Probability of dropping an input of the adapter, 0 to 1."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Module names as a suffix (`q_proj`, `mlp.up_proj`) or all-linear: every linear layer of what is not frozen."""
    dtype: TrainedDtype = TrainedDtype.float32
    """Storage type of adapter weights; float32 keeps small updates that bfloat16 would round away."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise reject("tuner.rank", self.rank, "must be 1 or more")
        if self.alpha <= 0:
            raise reject("tuner.alpha", self.alpha, "must be more than 0")
        if not 0 <= self.dropout < 1:
            raise reject("tuner.dropout", self.dropout, "must be at least 0 and less than 1")
        if not self.target_modules:
            raise reject("tuner.target_modules", [], "name at least one module, or all-linear")
