"""AdaLoRA (Zhang et al., arXiv 2303.10512): W x + (alpha / init_r) P diag(E) Q x; unimportant entries of E go to zero.

Every matrix starts at rank init_r. The number of entries that stay falls with the cube of the time left, from init_r
to target_r a matrix on average, and is dealt out anew every delta_t steps by importance: |weight x gradient|, smoothed
(beta1), times its smoothed deviation (beta2). R(P, Q) = ||P^T P - I||_F + ||Q Q^T - I||_F keeps P and Q orthogonal.

Deviations, both PEFT's: R is the mean over all P and Q of norms, not the sum of squared ones; the scale stays
alpha / init_r as ranks fall. A run resumed with more steps deals out along the longer schedule.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.low_rank import check_dropout
from harness.tuner.targeted import TargetedConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


@dataclass(kw_only=True, slots=True)
class AdaloraConfig(TargetedConfig):
    """AdaLoRA; defaults of ms-swift, which are PEFT's, and lora's alpha and dropout."""

    size: ClassVar[str] = "init_r"
    reads_gradients: ClassVar[bool] = True
    """Looks at whole gradients behind the optimiser's step."""
    name: str = "adalora"
    target_r: int = 8
    """Rank at the end, averaged over the adapted matrices."""
    init_r: int = 12
    """Rank of every matrix at the start; about 1.5 x target_r in the paper."""
    tinit: int = 0
    """First optimiser steps, in which all ranks stay at init_r."""
    tfinal: int = 0
    """Last optimiser steps, in which the ranks dealt out stay as they are."""
    delta_t: int = 1
    """Optimiser steps from one allocation to the next."""
    beta1: float = 0.85
    """Smoothing of the importance over steps, between 0 and 1; more is smoother."""
    beta2: float = 0.85
    """Smoothing of the importance's deviation, between 0 and 1; more is smoother."""
    orth_reg_weight: float = 0.5
    """Weight of the orthogonality term in the loss; 0 leaves it out."""
    alpha: float = 32.0
    """Scale of the update: alpha / init_r."""
    dropout: float = 0.05
    """Probability of dropping an input of the adapter, 0 to 1."""

    @property
    def least_size(self) -> int:  # type: ignore[override]
        """The smallest init_r."""
        return self.target_r + 1

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        for key, least in (("target_r", 1), ("tinit", 0), ("tfinal", 0), ("delta_t", 1)):
            if getattr(self, key) < least:
                raise reject(f"tuner.{key}", getattr(self, key), f"must be {least} or more")
        if self.target_r >= self.init_r:
            raise reject("tuner.target_r", self.target_r, f"must be less than tuner.init_r={self.init_r}")
        for key in ("beta1", "beta2"):
            if not 0 < getattr(self, key) < 1:
                raise reject(f"tuner.{key}", getattr(self, key), "must be more than 0 and less than 1")
        if not 0 <= self.orth_reg_weight < math.inf:
            raise reject("tuner.orth_reg_weight", self.orth_reg_weight, "must be 0 or more")
        if not 0 < self.alpha < math.inf:
            raise reject("tuner.alpha", self.alpha, "must be more than 0")
        check_dropout(self.dropout)


@register("tuner", AdaloraConfig)
def build(config: AdaloraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts AdaLoRA into the linear layers of the trainable components.

    Args:
        config: Ranks, schedule and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: For the number of steps, which the schedule needs, and the device.

    Raises:
        UserError: The schedule leaves no step to allocate in, or a matrix is smaller than init_r.
    """
    from typing import cast

    from peft import AdaLoraConfig, PeftModel

    from harness.tuner.peft_adapter import wrap
    from harness.tuner.rank_allocation import attach
    from harness.tuner.target import target_sizes

    if config.tinit + config.tfinal >= outlook.total_steps:
        remedy = (
            f"with tuner.tfinal={config.tfinal} leaves none of the run's {outlook.total_steps} steps to allocate in"
        )
        raise reject("tuner.tinit", config.tinit, f"{remedy}; lower one, or train longer")
    for name, sizes in target_sizes(loaded.model, config, policy).items():
        if config.init_r > min(sizes):
            raise reject("tuner.init_r", config.init_r, f"is more than the {min(sizes)} that {name} can have")
    tuned = wrap(
        loaded,
        policy,
        config,
        AdaLoraConfig,
        target_r=config.target_r,
        init_r=config.init_r,
        tinit=config.tinit,
        tfinal=config.tfinal,
        deltaT=config.delta_t,
        beta1=config.beta1,
        beta2=config.beta2,
        orth_reg_weight=config.orth_reg_weight,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        total_step=outlook.total_steps,
    )
    attach(tuned, cast(PeftModel, tuned.model), config.orth_reg_weight, outlook.device)
    return tuned
