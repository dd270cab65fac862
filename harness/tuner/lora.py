"""LoRA (Hu et al., arXiv 2106.09685): W x + (alpha / rank) B A x with W frozen, A random and B zero at start.

With `rslora` the scale is alpha / sqrt(rank) (arXiv 2312.03732). `lora_plus_ratio` trains B faster than A (arXiv
2402.12354). `init` chooses among starts, one file each in `start/`; but for `false` and loftq, the model starts
unchanged with all of them, for what A and B hold is taken out of W.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from harness.errors import reject
from harness.registry import register
from harness.tuner.lora_like import LoraLikeConfig, wrap_lora
from harness.tuner.start.config import CordaConfig, EvaConfig, LoftqConfig, LoraGaConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned

_DRAWN = {"default": True, "false": False, "gaussian": "gaussian"}
"""Starts of random numbers alone, under PEFT's names."""
_NODES = {"eva": EvaConfig, "corda": CordaConfig, "loftq": LoftqConfig, "lora_ga": LoraGaConfig}
"""Settings of one start each, under its name."""
_TAKEN_OUT = "takes A and B out of the base's weights, which would have to be rounded again"
_REWRITES = {
    "pissa": _TAKEN_OUT,
    "olora": _TAKEN_OUT,
    "corda": _TAKEN_OUT,
    "lora_ga": "needs a gradient of the base's weights",
}
"""Starts that a quantised base is not for, and why."""
_KNOWN = "default, false, gaussian, pissa, pissa_niter_N, olora, orthogonal, eva, corda, loftq, lora_ga"


@dataclass(kw_only=True, slots=True)
class LoraConfig(LoraLikeConfig):
    """LoRA; `init` and `rslora` choose among its variants."""

    name: str = "lora"
    init: str = "default"
    """Start of A and B: default (Kaiming, zero), false (both Kaiming: the model starts changed), gaussian, orthogonal;
    from W: pissa, pissa_niter_N (fast SVD, N iterations), olora, loftq; from data: eva, corda, lora_ga."""
    eva: EvaConfig = field(default_factory=EvaConfig)
    """Of init=eva."""
    corda: CordaConfig = field(default_factory=CordaConfig)
    """Of init=corda."""
    loftq: LoftqConfig = field(default_factory=LoftqConfig)
    """Of init=loftq."""
    lora_ga: LoraGaConfig = field(default_factory=LoraGaConfig)
    """Of init=lora_ga."""

    @property
    def exports_model(self) -> bool:
        """Whether the whole model is written, frozen weights included."""
        return self.init == "loftq"

    @property
    def needs_plain_base(self) -> str | None:
        """Why a quantised base will not do, or None."""
        method = self.init.partition("_niter_")[0]
        return f"with tuner.init={self.init} {_REWRITES[method]}" if method in _REWRITES else None

    def __post_init__(self) -> None:
        LoraLikeConfig.__post_init__(self)
        # `tuner.init=false` is a truth value to Hydra.
        self.init = "false" if self.init == "False" else self.init
        if not re.fullmatch(_KNOWN.replace(", ", "|").replace("_N", r"_[1-9]\d*"), self.init):
            raise reject("tuner.init", self.init, f"known: {_KNOWN}")
        for node, kind in _NODES.items():
            if getattr(self, node) != kind() and self.init != node:
                raise reject(f"tuner.{node}", getattr(self, node), f"has no effect with tuner.init={self.init}")
        if self.init == "orthogonal" and self.budget is not None:
            raise reject("tuner.budget", self.budget, "tuner.init=orthogonal needs an even rank: give tuner.rank")
        odd = [rank for rank in (self.rank, *self.rank_pattern.values()) if rank % 2]
        if self.init == "orthogonal" and odd:
            raise reject("tuner.rank", odd[0], "must be even with tuner.init=orthogonal")


@register("tuner", LoraConfig)
def build(config: LoraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts LoRA into the linear layers of the trainable components.

    Args:
        config: Rank, scale, targets and start.
        loaded: The frozen base model; most starts change its weights, but not the function that it computes.
        policy: Where adapters may go.
        outlook: Training samples and the device for a start that is computed, and the file that keeps it.
    """
    import torch

    from harness.tuner.fused import fuse
    from harness.tuner.layer_plan import plan
    from harness.tuner.start.factors import kept
    from harness.tuner.start.method import METHODS, change_base, export_for, following, set_factors

    base, layers = loaded.model, plan(loaded.model, config, policy)
    method, start = METHODS.get(config.init.partition("_niter_")[0]), {}
    if method is not None:
        compute = partial(method.compute, base, layers, config, outlook)
        start = kept(outlook, repr(config), getattr(torch, config.dtype.name), compute)
        change_base(base, layers, start, method, config)
    config = following(config, layers, start)
    tuned = wrap_lora(loaded, policy, config, init_lora_weights=_DRAWN.get(config.init, True))
    if method is not None:
        set_factors(tuned.model, start)
        tuned.export = export_for(method, tuned, start)
    if config.fused:
        fuse(loaded.model.model.language_model)
    return tuned
