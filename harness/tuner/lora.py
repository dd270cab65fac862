"""LoRA (Hu et al., arXiv 2106.09685): W x + (alpha / rank) B A x with W frozen, A random and B zero at start.

With `rslora` the scale is alpha / sqrt(rank) (arXiv 2312.03732). PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775)
start A and B from the SVD or QR of W and take their product out of W, so the model starts unchanged all the same.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, cast

from harness.errors import reject
from harness.registry import register
from harness.tuner.low_rank import LowRankConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


_CHANGES_BASE = ("pissa", "olora")
"""Initialisations that take A B out of the base weights."""


class Bias(Enum):
    """Which biases train beside the adapters."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


@dataclass(kw_only=True, slots=True)
class LoraConfig(LowRankConfig):
    """LoRA; `init` and `rslora` choose among its variants."""

    name: str = "lora"
    init: str = "default"
    """Start of A and B: default (Kaiming, zero), gaussian, pissa, pissa_niter_N (fast SVD, N iterations), olora."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable."""
    bias: Bias = Bias.none
    """Biases that train too: none, all, or lora_only (of the layers that have an adapter)."""

    def __post_init__(self) -> None:
        LowRankConfig.__post_init__(self)
        if not re.fullmatch(r"default|gaussian|pissa|pissa_niter_[1-9]\d*|olora", self.init):
            raise reject("tuner.init", self.init, "known: default, gaussian, pissa, pissa_niter_N, olora")
        if self.init.startswith(_CHANGES_BASE) and self.bias is not Bias.none:
            raise reject("tuner.bias", self.bias.name, f"can not be exported with tuner.init={self.init}; use none")


@register("tuner", LoraConfig)
def build(config: LoraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts LoRA into the linear layers of the trainable components.

    Args:
        config: Rank, scale, targets and start.
        loaded: The frozen base model; with pissa and olora its weights change, the function it computes does not.
        policy: Where adapters may go.
        outlook: Not looked at.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel

    from harness.tuner.changed_base import exporter
    from harness.tuner.peft_adapter import count_biases, wrap

    tuned = wrap(
        loaded,
        policy,
        config,
        PeftLoraConfig,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        bias=config.bias.name,
        init_lora_weights=True if config.init == "default" else config.init,
    )
    if config.bias is not Bias.none and not count_biases(tuned.model):
        raise reject("tuner.bias", config.bias.name, "what the freeze policy leaves free has no biases; use none")
    if config.init.startswith(_CHANGES_BASE):
        tuned.export = exporter(cast(PeftModel, tuned.model))
    return tuned
