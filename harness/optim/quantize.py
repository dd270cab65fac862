"""Blockwise quantisation in plain torch: evenly spaced codes for weights and projections, logarithmic ones for moments.

A tensor is cut into groups of consecutive values, the last one filled up. What is packed is a dict of tensors, which an
optimiser's state and a checkpoint can hold.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Packed = dict[str, Tensor]

MOMENT_GROUP = 256
"""Values of a moment that share one scale."""
DECADES = 7
"""Powers of ten below its group's largest value that a moment's code reaches."""
_SIGNED_STEP = DECADES * math.log(10) / 126
_UNSIGNED_STEP = DECADES * math.log(10) / 255


def pack_even(values: Tensor, bits: int, group: int) -> Packed:
    """Rounds to 2^bits values evenly spaced from the smallest to the largest of each group.

    The error of a value is at most half of its group's spacing (max - min) / (2^bits - 1).

    Args:
        values: Of any shape.
        bits: 4, two codes to a byte, or 8.
        group: Values that share a spacing.
    """
    rows = _grouped(values, group)
    low, spacing = _even_grid(rows, bits)
    codes = ((rows - low) / spacing).round().to(torch.uint8).flatten()
    if bits == 4:
        codes = F.pad(codes, (0, codes.numel() % 2))
        codes = codes[0::2] | codes[1::2] << 4
    return {"codes": codes, "low": low, "spacing": spacing}


def unpack_even(packed: Packed, bits: int, group: int, shape: Sequence[int]) -> Tensor:
    """Returns what `pack_even` rounded to, in float32."""
    codes = packed["codes"]
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten()
    rows = codes[: len(packed["low"]) * group].view(-1, group)
    return (rows * packed["spacing"] + packed["low"]).flatten()[: math.prod(shape)].view(*shape)


def round_even_(values: Tensor, bits: int, group: int, generator: torch.Generator) -> None:
    """Rounds in place as `pack_even` does, but up or down by chance, so that the mean stays what it was."""
    rows = _grouped(values, group)
    low, spacing = _even_grid(rows, bits)
    chance = torch.rand(rows.shape, generator=generator, device=rows.device)
    codes = ((rows - low) / spacing + chance).floor_().clamp_(0, 2**bits - 1)
    values.copy_((codes * spacing + low).flatten()[: values.numel()].view(values.shape))


def pack_moment(values: Tensor, *, signed: bool, generator: torch.Generator) -> Packed:
    """Rounds to 8 bits evenly spaced in the logarithm, over seven decades below the largest of each group of 256.

    Neighbours differ by 13.6 % (signed) or 6.5 %. Rounding is by chance: by rule, a running mean that moves by less
    than half of that a step would never move. Unsigned codes have no zero, since a second moment that became zero would
    divide a first moment by eps alone.
    """
    rows = _grouped(values, MOMENT_GROUP)
    largest = rows.abs().amax(dim=1, keepdim=True)
    step, top = (_SIGNED_STEP, 127) if signed else (_UNSIGNED_STEP, 255)
    place = (rows.abs() / largest.clamp_min(torch.finfo(rows.dtype).tiny)).log_().div_(step).add_(top)
    below = place.floor().clamp_(0 if signed else -1, top)
    # Between codes that grow by exp(step), the chance that keeps the mean; below the first signed one lies zero.
    chance = torch.expm1((place - below) * step) / math.expm1(step)
    if signed:
        chance = torch.where(below < 1, torch.exp((place - 1) * step), chance)
    codes = below + (torch.rand(rows.shape, generator=generator, device=rows.device) < chance)
    codes = codes.clamp_(0, top)
    if signed:
        return {"codes": (codes * rows.sign()).to(torch.int8), "largest": largest}
    return {"codes": codes.to(torch.uint8), "largest": largest}


def unpack_moment(packed: Packed, shape: torch.Size) -> Tensor:
    """Returns what `pack_moment` rounded to, in float32."""
    codes, largest = packed["codes"], packed["largest"]
    signed = codes.dtype is torch.int8
    step, top = (_SIGNED_STEP, 127) if signed else (_UNSIGNED_STEP, 255)
    exact = codes.float()
    values = ((exact.abs() - top) * step).exp_() * largest
    if signed:
        values *= exact.sign()
    return values.flatten()[: shape.numel()].view(shape)


def _grouped(values: Tensor, group: int) -> Tensor:
    """Returns float32 rows of one group each; the last is filled up with its last value."""
    flat = values.flatten().float()
    missing = -flat.numel() % group
    return torch.cat((flat, flat[-1:].expand(missing))).view(-1, group)


def _even_grid(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low = rows.amin(dim=1, keepdim=True)
    spacing = (rows.amax(dim=1, keepdim=True) - low) / (2**bits - 1)
    return low, spacing.clamp_min_(torch.finfo(torch.float32).tiny)
