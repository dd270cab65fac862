"""Adafactor: Adam with a second moment of one row and one column per matrix (Shazeer, Stern, arXiv 1804.04235).

R = b2 R + (1 - b2) mean_columns(g^2 + eps), C likewise over rows; u = g / sqrt(R C / mean(R)), divided by
max(1, rms(u) / clip); w = w - lr (u + decay w), with b2 = 1 - t^decay_rate: algorithms 4 and 5.
Deviations, those of transformers' Trainer: rates are absolute and follow our schedule, where the paper's step size is
min(0.01, 1 / sqrt(t)); and they are not multiplied by the rms of the weights unless `scale_parameter` asks for it.

transformers' implementation, not torch's: that one always multiplies by the rms, at least 1e-3. LoRA's B starts at
zero, so its rate would be a thousandth of `optim.lr`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.optim.config import OptimConfig, check_betas
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn

    from harness.optim.adafactor_optimizer import Adafactor

EPS = (1e-30, 1e-3)
"""Added to squared gradients; least rms of a weight under scale_parameter (section 9 of the paper)."""


@dataclass(kw_only=True, slots=True)
class AdafactorConfig(OptimConfig):
    """Adafactor: its state is a few thousandths of AdamW's, without beta1."""

    name: str = "adafactor"
    beta1: float | None = None
    """Decay of a running mean of updates, in [0, 1). null: none, which saves a copy of what trains."""
    decay_rate: float = -0.8
    """Exponent, in [-1, 0), of the step in 1 - t^decay_rate, the second moment's decay; nearer 0 forgets sooner."""
    clip_threshold: float = 1.0
    """Updates with a root mean square above this are scaled down to it; above 0."""
    scale_parameter: bool = False
    """Multiply rates by the root mean square of each weight, at least 1e-3, as in the paper; logs show them without."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        OptimConfig.__post_init__(self)
        if self.beta1 is not None:
            check_betas(("beta1", self.beta1))
        if not -1 <= self.decay_rate < 0:
            raise reject("optim.decay_rate", self.decay_rate, "must be in [-1, 0)")
        if not 0 < self.clip_threshold < math.inf:
            raise reject("optim.clip_threshold", self.clip_threshold, "must be above 0")

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of a row and a column for each matrix, and of the momentum, if there is one."""
        *stacked, rows, columns = (1, 1, *parameter.shape)
        moment = math.prod(stacked) * (rows + columns) if parameter.ndim > 1 else columns
        return 4 * moment + (0 if self.beta1 is None else parameter.nbytes)


@register("optim", AdafactorConfig)
def build(config: AdafactorConfig, groups: list[dict[str, Any]]) -> "Adafactor":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.
    """
    from harness.optim.adafactor_optimizer import Adafactor

    return Adafactor(
        groups,
        eps=EPS,
        beta1=config.beta1,
        decay_rate=config.decay_rate,
        clip_threshold=config.clip_threshold,
        scale_parameter=config.scale_parameter,
        relative_step=False,
    )
