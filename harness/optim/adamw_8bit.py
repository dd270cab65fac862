"""AdamW with running means of 8 bits (Dettmers et al., arXiv 2110.02861), from bitsandbytes.

Means are stored in blocks of 256 values, each with its own largest value, on a non-linear scale of 256 steps; an
update is AdamW's on the values that this gives back. A quarter of AdamW's state. Deviation: embeddings keep 32 bits
here, where the paper's stable embedding adds a norm as well, which a trained model can not take.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.optim.eight_bit import EightBitConfig, make
from harness.registry import register

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(kw_only=True, slots=True)
class AdamW8bitConfig(EightBitConfig):
    """AdamW with a quarter of the state; needs bitsandbytes."""

    name: str = "adamw_8bit"


@register("optim", AdamW8bitConfig)
def build(config: AdamW8bitConfig, groups: list[dict[str, Any]]) -> "Optimizer":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    return make(config.name, config, groups, paged=False)
