"""Weights as small integers with a scale, and most with a zero, for each group: (q - zero) scale.

What hqq, quanto and torchao make of a weight has this form; it is read here in plain torch, in the type of the scales,
as they read it. Integers of fewer than 8 bits are packed: as many as fit whole into a byte, of 3 bits ten into four.

Shapes: E outputs, D inputs, G x H a matrix's entries laid out in groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from harness.memory.quant.linear import Quantized


@dataclass(frozen=True, slots=True)
class GroupedCodec:
    """Groups of integers or 8-bit floats."""

    bits: int
    """Of a packed integer; 8 is not packed."""
    outputs: int
    inputs: int
    rows: int
    """G; scale and zero are (G, 1), or (1, H)."""

    def weight(self, tensors: Sequence[Tensor], dtype: torch.dtype, anchor: Tensor) -> Tensor:
        """Returns the matrix, (E, D)."""
        data, scale, *zero = tensors
        shape = self.outputs, self.inputs
        return _weight(data, scale, zero[0] if zero else None, self.bits, self.rows, *shape, dtype, anchor)

    def product(self, x_TD: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns x W^T, (T, E)."""
        return x_TD @ self.weight(tensors, dtype, x_TD).t()


@cache
def codec(bits: int, outputs: int, inputs: int, rows: int) -> GroupedCodec:
    """Returns the one codec of its kind."""
    return GroupedCodec(bits, outputs, inputs, rows)


def grouped(values_GH: Tensor, scale: Tensor, zero: Tensor | None, bits: int, shape: tuple[int, int]) -> Quantized:
    """Packs a weight.

    Args:
        values_GH: Integers from 0 to 2^bits - 1; of 8 bits any, and floats of 8 bits.
        scale: (G, 1) or (1, H).
        zero: Likewise, or None where it is 0.
        bits: Of a value.
        shape: (E, D).
    """
    data = values_GH.contiguous() if bits == 8 else pack(values_GH, bits)
    tensors = [data, scale.contiguous()] + ([] if zero is None else [zero.contiguous()])
    return Quantized(codec(bits, *shape, values_GH.shape[0]), *tensors)


def packed_bytes(count: int, bits: int) -> int:
    """Returns the bytes that integers take once packed."""
    if bits == 8:
        return count
    _, places = _cell(bits)
    return -(-count // places) * (4 if bits == 3 else 1)


def pack(values: Tensor, bits: int) -> Tensor:
    """Packs integers, in the order of memory, the first into the lowest bits."""
    dtype, places = _cell(bits)
    flat = values.reshape(-1).to(dtype)
    filled = torch.nn.functional.pad(flat, (0, -len(flat) % places)).view(-1, places)
    packed = filled[:, 0].clone()
    for place in range(1, places):
        packed |= filled[:, place] << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Returns the first `count` integers, flat."""
    _, places = _cell(bits)
    shifts = torch.arange(0, bits * places, bits, device=packed.device, dtype=packed.dtype)
    return ((packed.unsqueeze(1) >> shifts) & (2**bits - 1)).reshape(-1)[:count]


def _cell(bits: int) -> tuple[torch.dtype, int]:
    """Returns in what integers are packed, and how many."""
    return (torch.int32, 10) if bits == 3 else (torch.uint8, 8 // bits)


@torch.library.custom_op("harness::grouped_weight", mutates_args=())
def _weight(
    data: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    anchor: Tensor,
) -> Tensor:
    """Returns the matrix, (E, D); `anchor` is not read."""
    values = data if bits == 8 else unpack(data, bits, outputs * inputs)
    weight_GH = values.view(rows, -1).to(scale.dtype, copy=True)
    if zero is not None:
        weight_GH -= zero
    return weight_GH.mul_(scale).view(outputs, inputs).to(dtype)


@_weight.register_fake
def _shape(
    data: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    anchor: Tensor,
) -> Tensor:
    return data.new_empty(outputs, inputs, dtype=dtype)
