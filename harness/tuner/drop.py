"""Dropout that a compiled program computes again in the backward pass, for a few integer operations and no memory.

    keep[t, i] = hash(a[t] xor b[i]) >= rate 2^24,  y = x keep / (1 - rate)

a and b are drawn anew in each call, 32 bits for a row and 32 for a column; the hash is MurmurHash3's finaliser without
its first and last shift, and 24 of its bits are looked at. torch's own dropout draws Philox numbers for each element
and keeps the mask as a byte. Without compilation the hash would take a dozen passes over memory: there torch's own is
used.

Shapes: T tokens, I inputs of a layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_BITS = 24
# 0x85EBCA6B and 0xC2B2AE35 as signed numbers.
_FIRST, _SECOND = -2048144789, -1028477387


def drop(x: Tensor, rate: float) -> Tensor:
    """Returns x with a share of its elements at zero, and the others larger for it.

    Args:
        x: (..., I).
        rate: The share, less than 1.
    """
    if rate == 0:
        return x
    if not torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return torch.where(kept(x, rate), x * (1 / (1 - rate)), 0.0)


def kept(x: Tensor, rate: float) -> Tensor:
    """Draws which elements stay, of the shape of `x`."""
    rows = _words((*x.shape[:-1], 1), x.device)
    columns = _words(x.shape[-1:], x.device)
    mixed = (rows ^ columns) * _FIRST
    mixed = (mixed ^ (mixed >> 13 & 0x7FFFF)) * _SECOND
    return (mixed >> 32 - _BITS & (1 << _BITS) - 1) >= round(rate * 2**_BITS)


def _words(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=device)
