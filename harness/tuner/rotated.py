"""BOFT with one factor (arXiv 2311.06243) on a layer's input: s * (W (B x)), B block-diagonal, never made dense.

PEFT builds B from its blocks, one launch each, as a matrix of inputs x inputs, and multiplies it twice with a
permutation, which for one factor is the identity, and once with x: 2 I^3 FLOP twice and 2 I^2 a token for I inputs.
Here neighbouring blocks of b x b stand together in tiles of w x w, w at most 64: 2 w I FLOP a token, in bfloat16 32
FLOP a byte, so that it waits for memory and not for the zeros in the tiles, and some twenty launches whatever the
number of blocks. The parameters stay in PEFT's modules, so that checkpoints, exports and merging are theirs.

Deviations: which blocks dropout keeps still is drawn on the device, where PEFT draws on the CPU and waits for it. The
scale is applied as y + (s - 1) y in the type of x, in bfloat16 half the bytes of PEFT's float32 product: s - 1 is
small, and rounded it loses less than s would.

Shapes: T tokens, I inputs and O outputs of a layer, D blocks of b x b, G tiles of w x w.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.boft.layer import Linear as BoftLinear
from torch import Tensor, nn

_ADAPTER = "default"
_WIDTH = 64
"""Widest tile made of narrower blocks; a wider block is a tile of its own."""


def rotate_inputs(model: nn.Module) -> None:
    """Makes BOFT's linear layers of one factor rotate their input, in place.

    Args:
        model: The model, with PEFT's modules in it.
    """
    adapted: list[Any] = [layer for layer in model.modules() if type(layer) is BoftLinear]
    changed = [layer for layer in adapted if len(layer.boft_R[_ADAPTER]) == 1]
    for layer in changed:
        assert layer.boft_P[0].diagonal().all(), "one factor, and a permutation"
        layer.forward_apart = layer.forward
        layer.forward = MethodType(_forward, layer)


def _forward(self: Any, x: Tensor) -> Tensor:
    """The forward pass of PEFT's module, (..., I) to (..., O)."""
    if self.disable_adapters or self.merged:
        return self.forward_apart(x)
    blocks_Dbb = cayley(self.boft_R[_ADAPTER][0])
    # No dropout is an nn.Identity.
    num_still = int(getattr(self.boft_dropout[_ADAPTER], "p", 0.0) * len(blocks_Dbb))
    if num_still and self.training:
        blocks_Dbb = _keep_still(blocks_Dbb, num_still)
    y = self.base_layer(rotate(x, blocks_Dbb)).to(x.dtype)
    bias, gain_O = self.base_layer.bias, (self.boft_s[_ADAPTER].squeeze(-1) - 1).to(x.dtype)
    return torch.addcmul(y, y if bias is None else y - bias, gain_O).to(x.dtype)


def cayley(raw_Dbb: Tensor) -> Tensor:
    """Returns (I + Q)^-1 (I - Q), float32, of the skew-symmetric part Q of each matrix: the two factors commute."""
    with torch.autocast(raw_Dbb.device.type, enabled=False):
        raw_Dbb = raw_Dbb.float()
        skew_Dbb = (raw_Dbb - raw_Dbb.mT) / 2
        one_bb = torch.eye(raw_Dbb.shape[-1], device=raw_Dbb.device)
        # I + Q has an inverse whatever Q: a check of it would wait for the device.
        return torch.linalg.solve_ex(one_bb + skew_Dbb, one_bb - skew_Dbb).result


def rotate(x: Tensor, blocks_Dbb: Tensor) -> Tensor:
    """Returns x B, (..., I), for the block-diagonal B of these blocks, in the type of the products."""
    tiles_Gww = _tiles(blocks_Dbb).to(x.dtype)
    groups, width = tiles_Gww.shape[:2]
    x_GTw = x.reshape(-1, groups, width).transpose(0, 1)
    return torch.bmm(x_GTw, tiles_Gww).transpose(0, 1).reshape(x.shape)


def _tiles(blocks_Dbb: Tensor) -> Tensor:
    """Returns neighbouring blocks on the diagonals of tiles, (G, w, w)."""
    num_blocks, size = blocks_Dbb.shape[:2]
    together = max(k for k in range(1, max(1, _WIDTH // size) + 1) if num_blocks % k == 0)
    if together == 1:
        return blocks_Dbb
    one = torch.eye(together, device=blocks_Dbb.device).view(together, 1, together, 1)
    spread = blocks_Dbb.view(-1, together, size, 1, size) * one
    return spread.reshape(-1, together * size, together * size)


def _keep_still(blocks_Dbb: Tensor, num_still: int) -> Tensor:
    """Returns the blocks with the identity in place of `num_still` of them."""
    still_D = torch.randperm(len(blocks_Dbb), device=blocks_Dbb.device) < num_still
    one_bb = torch.eye(blocks_Dbb.shape[-1], device=blocks_Dbb.device)
    return torch.where(still_D[:, None, None], one_bb, blocks_Dbb)
