"""DoRA (Liu et al., arXiv 2402.09353): the weight is split into magnitude and direction, m (W + B A) / ||W + B A||.

B starts at zero and m at ||W||, so the model starts unchanged. As in the paper's section 4.3 the norm is taken as a
constant in the backward pass, which is what PEFT does. With `lora_plus_ratio` B trains
faster than A and m (arXiv 2402.12354). A and B start as LoRA's do by default; other starts (`tuner.init`) are LoRA's
alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.registry import register
from harness.tuner.lora_like import LoraLikeConfig, wrap_lora

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


@dataclass(kw_only=True, slots=True)
class DoraConfig(LoraLikeConfig):
    """Same defaults as lora, so that the two compare at equal settings."""

    name: str = "dora"


@register("tuner", DoraConfig)
def build(config: DoraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts DoRA into the linear layers of the trainable components; each gets a magnitude per output feature.

    Args:
        config: Rank, scale, targets and biases.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.
    """
    from harness.tuner.fused import fuse
    from harness.tuner.layer_plan import plan

    plan(loaded.model, config, policy)
    tuned = wrap_lora(loaded, policy, config, use_dora=True)
    if config.fused:
        fuse(loaded.model.model.language_model)
    return tuned
