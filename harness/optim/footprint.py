"""What an optimiser holds beside the weights, in bytes: known from names and shapes before anything is allocated."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

Trained = Sequence[tuple[str, "nn.Parameter"]]
"""What trains, with its names; may lie on the meta device."""


class Footprint(NamedTuple):
    """Bytes for all that trains."""

    gradients: float
    state: float
    update: float = 0.0
    """For a moment, while weights are updated: by then activations are freed."""
