"""DoRA (Liu et al., arXiv 2402.09353): the weight is split into magnitude and direction, m (W + B A) / ||W + B A||.

B starts at zero and m at ||W||, so the model starts unchanged. As in the paper's section 4.3 the norm is taken as a
constant in the backward pass, which is what PEFT does. With `lora_plus_ratio` B trains
faster than A and m (arXiv 2402.12354).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.registry import register
from harness.tuner.lora_like import LoraLikeConfig

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
        config: Rank, scale and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.
    """
    from peft import LoraConfig

    from harness.tuner.fused import fuse
    from harness.tuner.layer_plan import lora_plus_scales, plan
    from harness.tuner.peft_adapter import wrap

    plan(loaded.model, config, policy)
    tuned = wrap(
        loaded,
        policy,
        config,
        LoraConfig,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        use_dora=True,
    )
    tuned.lr_scales = lora_plus_scales(tuned.model, config.lora_plus_ratio)
    if config.fused:
        fuse(loaded.model.model.language_model)
    return tuned
