"""The vision tower's forward pass: stock blocks and mergers, every index made beforehand on the CPU.

Stock transformers finds places, lengths and interpolation weights on the device from `grid_thw` and waits for it at
each; the loader's workers know them all from the grids.

Shapes: N images and videos, P patches, F = P / merge^2 visual tokens, C frames, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from harness.model.attention import max_length
from harness.model.block import call


@dataclass(slots=True)
class VisionIndex:
    """What the tower has to know of its patches beside their values."""

    corners_P4: Tensor
    """(P, 4) int64: places in the learned grid of positions that a patch lies between."""
    weights_P4: Tensor
    """(P, 4) float32: share of each."""
    positions_P2: Tensor
    """(P, 2) int64: row and column, for the rotation."""
    cu_seqlens: Tensor
    """(C + 1,) int32: where each frame begins, and P; patches of one frame see each other."""
    max_seqlen: int
    """Patches of the largest frame."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "VisionIndex":
        """Returns a copy with each tensor changed: moved, or put into page-locked memory."""
        return VisionIndex(
            change(self.corners_P4),
            change(self.weights_P4),
            change(self.positions_P2),
            change(self.cu_seqlens),
            self.max_seqlen,
        )


def vision_index(grid_N3: Tensor, side: int, merge: int) -> VisionIndex:
    """Returns the index of some images and videos.

    Args:
        grid_N3: t, h, w of each in patches, on the CPU.
        side: Side of the learned grid of positions.
        merge: Patches merged along each side into one token.
    """
    corners_P4, weights_P4 = get_vision_interpolation_indices_and_weights(
        grid_N3, side, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    positions_P2 = get_vision_position_ids(grid_N3, merge)
    cu_seqlens = get_vision_cu_seqlens(grid_N3)
    return VisionIndex(corners_P4, weights_P4, positions_P2, cu_seqlens, int(grid_N3[:, 1:].prod(1).max()))


def run_tower(visual: Any, pixels_PD: Tensor, index: VisionIndex) -> tuple[Tensor, list[Tensor]]:
    """Returns the features (F, D) that stand for visual tokens, and those of each level of DeepStack, (F, D) each.

    Args:
        visual: The stock tower.
        pixels_PD: Values of each patch, on its device.
        index: Made from the same images, on its device.
    """
    hidden_PD = visual.patch_embed(pixels_PD)
    places_PD = (visual.pos_embed(index.corners_P4) * index.weights_P4.unsqueeze(-1)).sum(1)
    hidden_PD = hidden_PD + places_PD.to(hidden_PD.dtype)
    rotation = visual.rotary_pos_emb(hidden_PD, index.positions_P2)
    levels, longest = [], max_length(visual, index.max_seqlen)
    for number, block in enumerate(visual.blocks):
        hidden_PD = call(
            visual,
            block,
            hidden_PD,
            cu_seqlens=index.cu_seqlens,
            max_seqlen=longest,
            position_embeddings=rotation,
        )
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            levels.append(merger(hidden_PD))
    return visual.merger(hidden_PD), levels
