"""Stochastic gradient descent with momentum (Sutskever et al., 2013, for Nesterov's form), as torch has it.

m = momentum m + g + decay w; w = w - lr m, or w - lr (g + decay w + momentum m) with nesterov.
Deviation from the other optimisers here: the decay is part of the gradient, and so goes through the momentum.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.optim.config import OptimConfig, check_betas
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import SGD


@dataclass(kw_only=True, slots=True)
class SgdConfig(OptimConfig):
    """Plain or momentum SGD. Steps are as long as gradients are: it wants a rate of its own, far above AdamW's."""

    elementwise: ClassVar[bool] = True
    name: str = "sgd"
    weight_decay: float = 0.1
    """L2 penalty of matrices: this times the weights is added to their gradient. Vectors never decay."""
    momentum: float = 0.9
    """Decay of the running sum of gradients, in [0, 1). 0: plain SGD, which keeps no state."""
    nesterov: bool = False
    """Look ahead by one momentum step; needs momentum above 0."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        OptimConfig.__post_init__(self)
        check_betas(("momentum", self.momentum))
        if self.nesterov and not self.momentum:
            raise reject("optim.nesterov", "true", "has no effect with optim.momentum=0; set one of the two")

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of the momentum, if there is one."""
        return parameter.nbytes if self.momentum else 0


@register("optim", SgdConfig)
def build(config: SgdConfig, groups: list[dict[str, Any]]) -> "SGD":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.
    """
    from torch.distributed.tensor import DTensor
    from torch.optim import SGD

    from harness.optim.adamw import choose_kernel

    parameters = [parameter for group in groups for _, parameter in group["params"]]
    # Torch's fused kernel takes no part of a parameter, other than AdamW's.
    is_split = any(isinstance(parameter, DTensor) for parameter in parameters)
    kernel = {"foreach": True} if is_split else choose_kernel(parameters)
    optimizer = SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **kernel)
    # As for AdamW: the fused kernel must not take over fp16's unscaling.
    optimizer._step_supports_amp_scaling = False
    return optimizer
