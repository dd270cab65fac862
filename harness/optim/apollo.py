"""APOLLO: the gradient itself, scaled by what Adam would do to it in a random subspace (Zhu et al., arXiv 2412.05270).

R = P G with P of r x m random normal, variance 1 / r, m <= n (else from the right); R' = Adam(R);
W = W - lr scale G S - lr decay W, where S scales each channel j of the long side by |R'[:, j]| / |R[:, j]|, or the
whole matrix by |R'| / |R| (APOLLO-Mini, rank 1). |G S| grows by no more than `norm_growth` from step to step.
P is made anew each step from a seed and not stored: a target's state is 2 n r numbers, the last norm and the seed.
Weights that are no target train by AdamW.
Deviation: `scale` is the paper's alpha; the authors' code takes the root of its setting.
"""

import math
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.optim.projected import ProjectedConfig
from harness.registry import register

if TYPE_CHECKING:
    from harness.optim.targeted_adamw import TargetedAdamW


class ScaleType(Enum):
    """What shares one scaling factor."""

    channel = "channel"
    tensor = "tensor"


@dataclass(kw_only=True, slots=True)
class ApolloConfig(ProjectedConfig):
    """Adam's scaling, learnt in a random subspace."""

    name: str = "apollo"
    scale_type: ScaleType = ScaleType.channel
    """A scaling factor for each channel, or one for the whole matrix: enough for a rank of 1, scale then about 11."""
    norm_growth: float | None = 1.01
    """Largest growth of the norm of a target's scaled gradient from step to step, above 1; null for no limit."""
    proj_seed: int = 0
    """Seed of the random projections, the same on every process; the YAML file sets that of the run."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        ProjectedConfig.__post_init__(self)
        if self.norm_growth is not None and not 1 < self.norm_growth < math.inf:
            raise reject("optim.norm_growth", self.norm_growth, "must be above 1, or null for no limit")
        if not 0 <= self.proj_seed < 2**32:
            raise reject("optim.proj_seed", self.proj_seed, "must be 0 or more, and below 2**32")


@register("optim", ApolloConfig)
def build(config: ApolloConfig, groups: list[dict[str, Any]]) -> "TargetedAdamW":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: A target matches nothing that trains, or is smaller than the rank.
    """
    from harness.optim.apollo_rule import update
    from harness.optim.targeted_adamw import projected

    return projected(config, groups, partial(update, config))
