"""DoRA (Liu et al., arXiv 2402.09353): the weight is split into magnitude and direction, m (W + B A) / ||W + B A||.

B starts at zero and m at ||W||, so the model starts unchanged. As in the paper's section 4.3 the norm is taken as a
constant in the backward pass, which is what PEFT does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.registry import register
from harness.tuner.low_rank import LowRankConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


@dataclass(kw_only=True, slots=True)
class DoraConfig(LowRankConfig):
    """Same defaults as lora, so that the two compare at equal settings."""

    name: str = "dora"


@register("tuner", DoraConfig)
def build(config: DoraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts DoRA into the linear layers of the trainable components; each gets a magnitude per output feature.

    Args:
        config: Rank, scale and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.
    """
    from peft import LoraConfig

    from harness.tuner.peft_adapter import wrap

    return wrap(
        loaded,
        policy,
        config,
        LoraConfig,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=True,
    )
