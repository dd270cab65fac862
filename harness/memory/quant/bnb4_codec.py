"""bitsandbytes' 4-bit weights, read by one operator.

Shapes: E outputs, D inputs, N blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from harness.memory.quant.linear import Quantized

_NESTED_BLOCK = 256
"""Scales that share a scale of their own, in bitsandbytes."""


@dataclass(frozen=True, slots=True)
class Bnb4Codec:
    """Blocks of 4-bit codes."""

    code: str
    blocksize: int
    outputs: int
    inputs: int

    def weight(self, tensors: Sequence[Tensor], dtype: torch.dtype, anchor: Tensor) -> Tensor:
        """Returns the matrix, (E, D)."""
        data, *scales = tensors
        return _weight(data, scales, self.blocksize, self.code, self.outputs, self.inputs, dtype, anchor)

    def product(self, x_TD: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns x W^T, (T, E)."""
        return x_TD @ self.weight(tensors, dtype, x_TD).t()


@cache
def codec(code: str, blocksize: int, outputs: int, inputs: int) -> Bnb4Codec:
    """Returns the one codec of its kind."""
    return Bnb4Codec(code, blocksize, outputs, inputs)


def quantized(weight_ED: Tensor, code: str, blocksize: int, double_quant: bool, storage: torch.dtype) -> Quantized:
    """Quantises a weight on the device where it lies."""
    data, state = bnb.quantize_4bit(
        weight_ED.contiguous(),
        blocksize=blocksize,
        compress_statistics=double_quant,
        quant_type=code,
        quant_storage=storage,
    )
    scales = [state.absmax]
    if double_quant:
        assert state.state2.blocksize == _NESTED_BLOCK
        scales += [state.state2.absmax, state.state2.code, state.offset.reshape(1)]
    return Quantized(codec(code, blocksize, *weight_ED.shape), data, *scales)


@torch.library.custom_op("harness::bnb4_weight", mutates_args=())
def _weight(
    data: Tensor,
    scales: list[Tensor],
    blocksize: int,
    code: str,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    anchor: Tensor,
) -> Tensor:
    """Returns the matrix, (E, D).

    Args:
        data: Two codes a byte.
        scales: absmax (N,) in float32; or in 8 bits, then its own absmax, its code and its mean.
        blocksize: Weights of a block.
        code: nf4 or fp4.
        outputs: E.
        inputs: D.
        dtype: Of the result.
        anchor: Not read.
    """
    absmax_N = scales[0]
    if len(scales) > 1:
        nested, table, mean = scales[1:]
        operator = torch.ops.bitsandbytes.dequantize_blockwise.default
        absmax_N = operator(absmax_N, nested, table, _NESTED_BLOCK, torch.float32) + mean
    operator = torch.ops.bitsandbytes.dequantize_4bit.default
    return operator(data, absmax_N, blocksize, code, [outputs, inputs], dtype)


@_weight.register_fake
def _shape(
    data: Tensor,
    scales: list[Tensor],
    blocksize: int,
    code: str,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    anchor: Tensor,
) -> Tensor:
    return data.new_empty(outputs, inputs, dtype=dtype)
