"""VeRA (Kopiczko et al., arXiv 2310.11454): W x + b * (B (d * (A x))), with A and B random and frozen.

A and B are shared by all layers. Each layer trains two vectors, d of `rank` entries and b of one an output: rank +
outputs parameters. b starts at zero, so the model starts unchanged. Layers of different shapes take their part of one
A (rank x the most inputs) and one B (the most outputs x rank), as PEFT does; in the paper all layers have one shape.
"""

import math
import warnings
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
class VeraConfig(TargetedConfig):
    """VeRA; defaults of ms-swift, which are PEFT's."""

    size: ClassVar[str] = "rank"
    name: str = "vera"
    rank: int = 256
    """Rank of the shared random matrices. It costs one parameter a layer, so it is set higher than in lora."""
    projection_prng_key: int = 0
    """Seed of the shared random matrices, apart from the run's seed."""
    dropout: float = 0.0
    """Probability of dropping an input of the adapter, 0 to 1."""
    d_initial: float = 0.1
    """What every entry of d starts at; the paper uses 0.1 for most and 1e-7 for some tasks."""
    save_projection: bool = True
    """Export the random matrices too. Without, they are drawn again from the seed: smaller, and bound to torch's."""

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        if self.rank < 1:
            raise reject("tuner.rank", self.rank, "must be 1 or more")
        if not 0 <= self.projection_prng_key < 2**63:
            raise reject("tuner.projection_prng_key", self.projection_prng_key, "is a seed: 0 or more, below 2**63")
        if self.d_initial == 0:
            raise reject(
                "tuner.d_initial", self.d_initial, "gives b no gradient, nor b = 0 any to d: nothing can train"
            )
        if not 0 < self.d_initial < math.inf:
            raise reject("tuner.d_initial", self.d_initial, "must be more than 0; the sign is b's to learn")
        check_dropout(self.dropout)


@register("tuner", VeraConfig)
def build(config: VeraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts VeRA into the linear layers of the trainable components.

    Args:
        config: Rank, start and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.
    """
    from peft import VeraConfig

    from harness.tuner.peft_adapter import wrap

    with warnings.catch_warnings():
        # Asked for, and said in the key's own text.
        warnings.filterwarnings("ignore", message="Specified to not save vera_A and vera_B")
        return wrap(
            loaded,
            policy,
            config,
            VeraConfig,
            r=config.rank,
            projection_prng_key=config.projection_prng_key,
            vera_dropout=config.dropout,
            d_initial=config.d_initial,
            save_projection=config.save_projection,
        )
