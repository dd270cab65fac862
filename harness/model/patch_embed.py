"""The patch embedding as a matrix product: its Conv3d has kernel = stride, and some builds run that far slower.

The parameters stay where they are, so checkpoints are the same. P vision patches, D values a patch, W width of the ViT.
"""

from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def make_linear(visual: nn.Module) -> None:
    """Replaces the forward of a vision tower's patch embedding, in place."""
    embed: Any = visual.patch_embed
    embed.forward = MethodType(_forward, embed)


def _forward(self: Any, pixels_PD: Tensor) -> Tensor:
    """Returns (P, W), in the type of the weights, as the convolution does."""
    weight = self.proj.weight
    return F.linear(pixels_PD.to(weight.dtype), weight.flatten(1), self.proj.bias)
