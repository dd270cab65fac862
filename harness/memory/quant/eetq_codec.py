"""EETQ's weights and product, by kernels that are loaded when they are asked for.

Shapes: T tokens, E outputs, D inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.memory.quant.linear import Quantized

_kernels: list[Any] = []


def use_kernels(kernels: Any) -> None:
    """Takes what multiplies and quantises, for all models of this process."""
    _kernels[:] = [kernels]


@dataclass(frozen=True, slots=True)
class EetqCodec:
    """A scale for each output."""

    def weight(self, tensors: Sequence[Tensor], dtype: torch.dtype, anchor: Tensor) -> Tensor:
        """Returns the matrix, (E, D)."""
        return _weight(*tensors, dtype, anchor)

    def product(self, x_TD: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns x W^T, (T, E)."""
        return _product(x_TD, *tensors)


CODEC = EetqCodec()


def quantized(weight_ED: Tensor) -> Quantized:
    """Quantises a weight; the kernels do it on the host."""
    data_DE, scale_E = _kernels[0].quant_weights(weight_ED.t().contiguous().cpu(), torch.int8, False)
    return Quantized(CODEC, data_DE.to(weight_ED.device), scale_E.to(weight_ED.device))


@torch.library.custom_op("harness::eetq_weight", mutates_args=())
def _weight(data_DE: Tensor, scale_E: Tensor, dtype: torch.dtype, anchor: Tensor) -> Tensor:
    """Returns the matrix, (E, D); `anchor` is not read."""
    one_DD = torch.eye(data_DE.shape[0], dtype=torch.float16, device=data_DE.device)
    return _kernels[0].w8_a16_gemm(one_DD, data_DE, scale_E).t().to(dtype, copy=True).contiguous()


@_weight.register_fake
def _weight_shape(data_DE: Tensor, scale_E: Tensor, dtype: torch.dtype, anchor: Tensor) -> Tensor:
    return data_DE.new_empty(data_DE.shape[1], data_DE.shape[0], dtype=dtype)


@torch.library.custom_op("harness::eetq_product", mutates_args=())
def _product(x_TD: Tensor, data_DE: Tensor, scale_E: Tensor) -> Tensor:
    """Returns x W^T, (T, E), in the type of x."""
    return _kernels[0].w8_a16_gemm(x_TD.to(torch.float16), data_DE, scale_E).to(x_TD.dtype, copy=True)


@_product.register_fake
def _product_shape(x_TD: Tensor, data_DE: Tensor, scale_E: Tensor) -> Tensor:
    return x_TD.new_empty(x_TD.shape[0], data_DE.shape[1])
