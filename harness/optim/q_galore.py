"""Q-GaLore: GaLore with 8-bit states, 4-bit projections and fewer of them (Zhang et al., arXiv 2407.08296).

After each projection of a matrix but its first, the cosine of its leading singular vector with the last one joins a
queue. While the mean of `queue_size` such numbers is at least `cos_threshold`, the matrix's interval grows by
`gamma_proj` with each projection.

Deviations: the sign of a singular vector is arbitrary, so that of the cosine is dropped. Adam's moments are rounded by
chance to codes evenly spaced in the logarithm (`harness/optim/quantize.py`), not to those of bitsandbytes, which is not
needed. The paper holds weights in 8 bits and makes 16-bit copies in the forward pass; here `quantize_weights` rounds
them by chance to 256 even steps in each group of 256 after each update, and keeps them in float32: it shows what the
rounding does to training, and saves no memory.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.optim.galore import ProjectionType
from harness.optim.projected import ProjectedConfig
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn

    from harness.optim.targeted_adamw import TargetedAdamW


@dataclass(kw_only=True, slots=True)
class QGaloreConfig(ProjectedConfig):
    """GaLore with quantised states and an interval of its own for each matrix."""

    name: str = "q_galore"
    proj_type: ProjectionType = ProjectionType.std
    """std projects the short side and saves most, reverse_std the long one, left the rows, right the columns, full
    both sides."""
    quantize_state: bool = True
    """Keep Adam's moments of the targets in 8 bits."""
    quantize_weights: bool = False
    """Round the targets to 256 values a group of 256 after each update. No memory is saved: they stay float32."""
    proj_quant: bool = False
    """Keep the projections in proj_bits."""
    proj_bits: int = 4
    """Bits of a projection's values, 4 or 8."""
    proj_group_size: int = 256
    """Values of a projection that share a scale: fewer is more exact, and 8 bytes a group."""
    cos_threshold: float = 0.4
    """Mean cosine of leading vectors, 0 to 1, from which on projections are alike; 1 keeps intervals as they are."""
    gamma_proj: float = 2.0
    """Factor on a matrix's interval while its projections are alike; 1 keeps it."""
    queue_size: int = 5
    """Projections in a row whose mean cosine counts."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        ProjectedConfig.__post_init__(self)
        if self.proj_bits not in (4, 8):
            raise reject("optim.proj_bits", self.proj_bits, "must be 4 or 8")
        for key in ("proj_group_size", "queue_size"):
            if getattr(self, key) < 1:
                raise reject(f"optim.{key}", getattr(self, key), "must be 1 or more")
        if not 0 <= self.cos_threshold <= 1:
            raise reject("optim.cos_threshold", self.cos_threshold, "must be 0 to 1")
        if not 1 <= self.gamma_proj < math.inf:
            raise reject("optim.gamma_proj", self.gamma_proj, "must be 1 or more")

    def target_state(self, target: "nn.Parameter") -> float:
        """Returns the bytes of a target's bases, and of Adam's moments in their coordinates."""
        from harness.optim.galore_rule import sides_of
        from harness.optim.projection import num_values
        from harness.optim.quantize import MOMENT_GROUP

        bases, low = num_values(target, self.rank, sides_of(self.proj_type, target))
        packed = self.proj_bits / 8 + 8 / self.proj_group_size
        moments = 2 * (1 + 4 / MOMENT_GROUP) if self.quantize_state else 8
        return (packed if self.proj_quant else target.itemsize) * bases + moments * low


@register("optim", QGaloreConfig)
def build(config: QGaloreConfig, groups: list[dict[str, Any]]) -> "TargetedAdamW":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: A target matches nothing that trains, is smaller than the rank, or too coarse to hold 256 values.
    """
    import torch

    from harness.optim.q_galore_rule import update
    from harness.optim.targeted_adamw import projected

    optimizer = projected(config, groups, partial(update, config))
    if config.quantize_weights and any(target.dtype is not torch.float32 for target in optimizer.targets):
        raise reject("optim.quantize_weights", True, "16 bits do not hold 256 even steps; set tuner.dtype=float32")
    return optimizer
