"""OFT (Qiu et al., arXiv 2306.07280) as OFTv2 (arXiv 2506.18349): W (R x), R orthogonal and block-diagonal.

Each block is Cayley's (I + Q)(I - Q)^-1 of a skew-symmetric Q that starts at zero: block_size (block_size - 1) / 2
parameters a block, inputs / block_size blocks a layer. The inputs are rotated, not the weight, which OFTv2 brought.
Deviation, OFTv2's too: the inverse is a Neumann series, cut off after `neumann_terms` terms, so R is orthogonal to the
order of ||Q|| to that power; 0 solves exactly.
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


_EPS = 6e-5
"""PEFT's default."""


@dataclass(kw_only=True, slots=True)
class OftConfig(TargetedConfig):
    """OFT; defaults of PEFT."""

    size: ClassVar[str] = "block_size"
    size_divides_inputs: ClassVar[bool] = True
    name: str = "oft"
    block_size: int = 32
    """Size of the orthogonal blocks; must divide the inputs of every layer."""
    dropout: float = 0.0
    """Share of a layer's blocks that stand still in a step, 0 to 1, rounded down to whole blocks."""
    coft: bool = False
    """Constrained variant: Q stays within `eps` of zero, projected back in every forward pass."""
    eps: float = _EPS
    """How far a layer's Q may go from zero with coft."""
    block_share: bool = False
    """One block for all of a layer's inputs: fewer parameters by the number of blocks."""
    neumann_terms: int = 5
    """Terms of the series that stands for Cayley's inverse, 2 or more; 0 solves exactly, and slower."""

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        if self.block_size < 2:
            raise reject("tuner.block_size", self.block_size, "must be 2 or more")
        if not 0 < self.eps < math.inf:
            raise reject("tuner.eps", self.eps, "must be more than 0")
        if self.eps != _EPS and not self.coft:
            raise reject("tuner.eps", self.eps, "takes effect with tuner.coft=true only; leave it out")
        if self.neumann_terms < 0 or self.neumann_terms == 1:
            raise reject("tuner.neumann_terms", self.neumann_terms, "must be 2 or more, or 0; one term is I, untrained")
        if self.dropout and self.block_share:
            raise reject("tuner.dropout", self.dropout, "can not take effect with tuner.block_share=true; set 0")
        check_dropout(self.dropout)


@register("tuner", OftConfig)
def build(config: OftConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts OFT into the linear layers of the trainable components.

    Args:
        config: Block size, variant and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.

    Raises:
        UserError: block_size does not divide a layer's inputs, where PEFT would take another one.
    """
    from peft import OFTConfig

    from harness.tuner.peft_adapter import wrap
    from harness.tuner.target import target_sizes

    for name, (inputs, _) in target_sizes(loaded.model, config, policy).items():
        if inputs % config.block_size:
            raise reject("tuner.block_size", config.block_size, f"does not divide the {inputs} inputs of {name}")
        blocks = inputs // config.block_size
        if config.dropout and not int(config.dropout * blocks):
            raise reject("tuner.dropout", config.dropout, f"is less than one of the {blocks} blocks of {name}")
    return wrap(
        loaded,
        policy,
        config,
        OFTConfig,
        oft_block_size=config.block_size,
        module_dropout=config.dropout,
        coft=config.coft,
        eps=config.eps,
        block_share=config.block_share,
        use_cayley_neumann=config.neumann_terms > 0,
        num_cayley_neumann_terms=config.neumann_terms,
    )
