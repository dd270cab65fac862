"""Lion: the sign of an interpolated momentum (Chen et al., arXiv 2302.06675, algorithm 2).

c = b1 m + (1 - b1) g; w = w - lr (sign(c) + decay w); m = b2 m + (1 - b2) g. Half of AdamW's state.
No deviation. Section 5 of the paper: a rate 3 to 10 times lower than AdamW's, and a decay as much higher.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.optim.config import OptimConfig, check_betas
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn

    from harness.optim.lion_optimizer import Lion


@dataclass(kw_only=True, slots=True)
class LionConfig(OptimConfig):
    """Lion: every value moves by the learning rate, which is to be 3 to 10 times lower than AdamW's."""

    elementwise: ClassVar[bool] = True
    name: str = "lion"
    beta1: float = 0.9
    """Weight of the running mean against the gradient in the update, in [0, 1)."""
    beta2: float = 0.99
    """Decay of the running mean of gradients, in [0, 1)."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        OptimConfig.__post_init__(self)
        check_betas(("beta1", self.beta1), ("beta2", self.beta2))

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of one running mean."""
        return parameter.nbytes


@register("optim", LionConfig)
def build(config: LionConfig, groups: list[dict[str, Any]]) -> "Lion":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.
    """
    from harness.optim.lion_optimizer import Lion

    return Lion(groups, (config.beta1, config.beta2))
