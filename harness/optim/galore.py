"""GaLore: Adam in the subspace of a gradient's first singular vectors (Zhao et al., arXiv 2403.03507, algorithm 2).

Every `update_proj_gap` steps U = the first r left singular vectors of G (m <= n; else V from the right). Then
R = U^T G; N = Adam(R), with moments of r x n; W = W - lr scale U N - lr decay W.
Weights that are no target train by AdamW. Moments live on through a change of the subspace, as in the paper.
Deviation: the decay comes before the update, as in AdamW, and is scaled by the learning rate.
"""

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.optim.projected import ProjectedConfig
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn

    from harness.optim.targeted_adamw import TargetedAdamW


class ProjectionType(Enum):
    """The side from which a gradient is projected."""

    std = "std"
    reverse_std = "reverse_std"
    right = "right"
    left = "left"
    full = "full"


@dataclass(kw_only=True, slots=True)
class GaloreConfig(ProjectedConfig):
    """Adam's moments of rank r for the model's own matrices."""

    name: str = "galore"
    proj_type: ProjectionType = ProjectionType.std
    """std projects the short side and saves most, reverse_std the long one, left the rows, right the columns, full
    both sides."""

    def target_state(self, target: "nn.Parameter") -> float:
        """Returns the bytes of a target's bases, and of Adam's moments in their coordinates."""
        from harness.optim.galore_rule import sides_of
        from harness.optim.projection import num_values

        bases, low = num_values(target, self.rank, sides_of(self.proj_type, target))
        return target.itemsize * bases + 8 * low


@register("optim", GaloreConfig)
def build(config: GaloreConfig, groups: list[dict[str, Any]]) -> "TargetedAdamW":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: A target matches nothing that trains, or is smaller than the rank.
    """
    from harness.optim.galore_rule import update
    from harness.optim.targeted_adamw import projected

    return projected(config, groups, partial(update, config))
