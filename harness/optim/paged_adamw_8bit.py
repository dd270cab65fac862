"""AdamW with running means of 8 bits that may leave the GPU where its memory is short (QLoRA, arXiv 2305.14314).

As `adamw_8bit`; the means of parameters with 100,000 values or more lie in CUDA's managed memory, which the driver
pages to the CPU and back. On the CPU there is nothing to page: it is refused there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.optim.eight_bit import EightBitConfig, make
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

PAGED = 100_000
"""Values of a parameter from which on bitsandbytes pages its running means."""


@dataclass(kw_only=True, slots=True)
class PagedAdamW8bitConfig(EightBitConfig):
    """adamw_8bit whose state makes room on the GPU when a step needs it; needs bitsandbytes and a GPU."""

    name: str = "paged_adamw_8bit"

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of running means that cannot leave the GPU."""
        return 0 if parameter.numel() >= PAGED else EightBitConfig.state_of(self, name, parameter)


@register("optim", PagedAdamW8bitConfig)
def build(config: PagedAdamW8bitConfig, groups: list[dict[str, Any]]) -> "Optimizer":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: bitsandbytes is not installed, or a parameter is not on a GPU.
    """
    on_gpu = all(parameter.is_cuda for group in groups for _, parameter in group["params"])
    optimizer = make(config.name, config, groups, paged=True)
    if not on_gpu:
        raise reject("optim", config.name, "pages the memory of a GPU, and the model is on the CPU; use adamw_8bit")
    return optimizer
