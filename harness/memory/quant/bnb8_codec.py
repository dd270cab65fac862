"""bitsandbytes' 8-bit weights, and their product with activations that are rounded on the way.

Shapes: T tokens, E outputs, D inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from harness.memory.quant.linear import Quantized


@dataclass(frozen=True, slots=True)
class Bnb8Codec:
    """A scale for each row."""

    threshold: float

    def weight(self, tensors: Sequence[Tensor], dtype: torch.dtype, anchor: Tensor) -> Tensor:
        """Returns the matrix, (E, D)."""
        return _weight(*tensors, dtype, anchor)

    def product(self, x_TD: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns x W^T, (T, E)."""
        data_ED, scale_E = tensors
        return _product(x_TD, data_ED.t(), scale_E, self.threshold)


@cache
def codec(threshold: float) -> Bnb8Codec:
    """Returns the one codec of its kind."""
    return Bnb8Codec(threshold)


def quantized(weight_ED: Tensor, threshold: float) -> Quantized:
    """Quantises a weight on the device where it lies; bitsandbytes takes float16."""
    data_ED, scale_E, _ = bnb.int8_vectorwise_quant(weight_ED.to(torch.float16))
    return Quantized(codec(threshold), data_ED, scale_E)


@torch.library.custom_op("harness::bnb8_weight", mutates_args=())
def _weight(data_ED: Tensor, scale_E: Tensor, dtype: torch.dtype, anchor: Tensor) -> Tensor:
    """Returns the matrix, (E, D); `anchor` is not read."""
    return data_ED.to(dtype, copy=True).mul_(scale_E.unsqueeze(1) * (1 / 127))


@_weight.register_fake
def _weight_shape(data_ED: Tensor, scale_E: Tensor, dtype: torch.dtype, anchor: Tensor) -> Tensor:
    return data_ED.new_empty(data_ED.shape, dtype=dtype)


# One operator, since the number of outliers, which only values tell, would end a compiled program.
@torch.library.custom_op("harness::bnb8_product", mutates_args=())
def _product(x_TD: Tensor, data_DE: Tensor, scale_E: Tensor, threshold: float) -> Tensor:
    """Returns x W^T, (T, E), in the type of x."""
    rounded_TD, scale_T, outliers = bnb.int8_vectorwise_quant(x_TD.to(torch.float16), threshold=threshold)
    data_ED = data_DE.t()
    if threshold:
        operator = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default
        return operator(x_TD, rounded_TD, data_ED, scale_T, scale_E, outliers, None)[0]
    operator = torch.ops.bitsandbytes.int8_scaled_mm.default
    return operator(rounded_TD, data_ED, scale_T, scale_E, bias=None, dtype=x_TD.dtype)


@_product.register_fake
def _product_shape(x_TD: Tensor, data_DE: Tensor, scale_E: Tensor, threshold: float) -> Tensor:
    return x_TD.new_empty(x_TD.shape[0], data_DE.shape[1])
