"""What the 8-bit optimisers of bitsandbytes share: their settings, and the check that the library is there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.library import Library
from harness.optim.adam import AdamConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

EMBEDDINGS = ("embed_tokens", "pos_embed", "lm_head")
"""Modules whose rows get gradients rarely and unevenly: section 2.3 of the paper keeps them at 32 bits."""
_BYTES = 2 * (1 + 4 / 256)
"""Two running means in a byte each, with their scales."""


@dataclass(kw_only=True, slots=True)
class EightBitConfig(AdamConfig):
    """Shared fields; an optimiser extends it by fields only."""

    library: ClassVar[Library] = Library("bitsandbytes", "bitsandbytes", "bitsandbytes")
    """Whose optimisers they are."""
    min_8bit_size: int = 4096
    """Parameters with fewer values keep running means of 32 bits: it costs little, and 8 bits hurt most there."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        AdamConfig.__post_init__(self)
        if self.min_8bit_size < 0:
            raise reject("optim.min_8bit_size", self.min_8bit_size, "must be 0 or more")

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of two running means, in 8 bits or in 32."""
        small = parameter.numel() < self.min_8bit_size or is_embedding(name)
        return (8 if small else _BYTES) * parameter.numel()


def is_embedding(name: str) -> bool:
    """Says whether a parameter is one of those that keep 32 bits."""
    return any(part in EMBEDDINGS for part in name.split("."))


def make(name: str, config: EightBitConfig, groups: list[dict[str, Any]], *, paged: bool) -> "Optimizer":
    """Builds AdamW of bitsandbytes with running means of 8 bits.

    Args:
        name: The option, for the message.
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.
        paged: Whether large running means may leave the GPU where its memory is short.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    with config.library.needed(f"optim={name}"):
        from harness.optim.eight_bit_optimizer import EightBitAdamW

    betas = config.beta1, config.beta2
    return EightBitAdamW(groups, betas, config.eps, min_8bit_size=config.min_8bit_size, paged=paged)
