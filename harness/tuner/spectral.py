"""FourierFT's update (arXiv 2405.03003, eqs. 2 to 4) by a real transform: W x + dW x, dW = scaling Re(F^-1(S)).

The real part of a transform is the transform of the spectrum's Hermitian part, of which a half says all: entry (p, q)
of value c lies there as c / 2, at (-p, -q) where q is beyond the middle. The gradient of c is the real part of the
transform of dW's gradient, at (p, q). PEFT transforms all of S as complex numbers, and divides, scales and takes real
parts in passes of their own: about 80 bytes moved a weight for dW and as many for its gradient, here 26 and 22.

What is left is the price of the method, whatever the number of tokens the transforms, and three products of the layer's
size (dW x, dW^T g, and dW's gradient g x^T) beside the two of a frozen layer; dW is held until the backward pass, 2
bytes a weight in bfloat16. Factors of cos and sin, 2 n columns each, in place of dW would take 8 n (I + O) FLOP a token
and no transforms where dW takes 6 I O: more in every layer of a 4B model at the usual n of 2000; for n below 0.75 I O /
(I + O), there 550 (k, v), 1180 (q, o) and 1520 (MLP), fewer. The parameters stay in PEFT's modules, as do evaluation,
merging and export.

Shapes: T tokens, I inputs and O outputs of a layer, N trained entries, M places, N and the mirrors of some.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.fourierft.layer import FourierFTLinear
from torch import Tensor, nn

_ADAPTER = "default"


def transform_real(model: nn.Module) -> None:
    """Makes FourierFT's linear layers use real transforms in training, in place.

    Args:
        model: The model, with PEFT's modules in it.
    """
    changed: list[Any] = [layer for layer in model.modules() if type(layer) is FourierFTLinear]
    for layer in changed:
        places_M, sources_M = fold(layer.indices[_ADAPTER], layer.out_features, layer.in_features)
        layer.register_buffer("places", places_M, persistent=False)
        layer.register_buffer("sources", sources_M, persistent=False)
        layer.forward_apart = layer.forward
        layer.forward = MethodType(_forward, layer)


def fold(indices_2N: Tensor, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Returns where entries lie in the half spectrum, flattened, and which entry lies there, (M,) each.

    The first N places are those of the entries in their order. Behind them are the mirrors of what lies in a column
    that is its own mirror: the first, and of an even number of inputs the middle one.
    """
    row_N, column_N = indices_2N
    beyond_N = column_N > inputs // 2
    row_N = torch.where(beyond_N, -row_N % outputs, row_N)
    column_N = torch.where(beyond_N, inputs - column_N, column_N)
    width = inputs // 2 + 1
    own = ((column_N == 0) | (2 * column_N == inputs)).nonzero().squeeze(-1)
    mirrors = (-row_N[own] % outputs) * width + column_N[own]
    entries_N = torch.arange(len(row_N), device=row_N.device)
    return torch.cat([row_N * width + column_N, mirrors]), torch.cat([entries_N, own])


def _forward(self: Any, x: Tensor) -> Tensor:
    """The forward pass of PEFT's module in training, (..., I) to (..., O)."""
    if not self.training or self.disable_adapters or self.merged:
        return self.forward_apart(x)
    y = self.base_layer(x)
    weight_OI = update(self).to(y.dtype)
    return (y + F.linear(x.to(y.dtype), weight_OI)).to(x.dtype)


def update(layer: Any) -> Tensor:
    """Returns what the layer adds to its weight, (O, I) float32."""
    outputs, inputs = layer.out_features, layer.in_features
    factor = layer.fourierft_scaling[_ADAPTER] / (2 * outputs * inputs)
    values_N = layer.fourierft_spectrum[_ADAPTER].float() * factor
    return _inverse(values_N, layer.places, layer.sources, outputs, inputs)


# Operators of our own: a compiled program takes them whole, where it can not generate code for complex numbers.
@torch.library.custom_op("harness::sparse_inverse_transform", mutates_args=())
def _inverse(values_N: Tensor, places_M: Tensor, sources_M: Tensor, outputs: int, inputs: int) -> Tensor:
    """Returns the real inverse transform, not divided by its size, of values at places, (O, I)."""
    half = values_N.new_zeros(outputs * (inputs // 2 + 1), 2)
    # Of what is drawn without repetition at most two meet in a place: their sum knows no order.
    half[:, 0].index_add_(0, places_M, values_N[sources_M])
    spectrum = torch.view_as_complex(half.view(outputs, -1, 2))
    return torch.fft.irfft2(spectrum, s=(outputs, inputs), norm="forward").contiguous()


@torch.library.custom_op("harness::sparse_inverse_transform_backward", mutates_args=())
def _gradient(grad_OI: Tensor, places_M: Tensor, num_entries: int) -> Tensor:
    """Returns the gradient of the values, (N,): each stands for itself and its mirror."""
    spectrum = torch.fft.rfft2(grad_OI.float()).flatten()
    return 2 * spectrum[places_M[:num_entries]].real


@_inverse.register_fake
def _inverse_shape(values_N: Tensor, places_M: Tensor, sources_M: Tensor, outputs: int, inputs: int) -> Tensor:
    return values_N.new_empty(outputs, inputs)


@_gradient.register_fake
def _gradient_shape(grad_OI: Tensor, places_M: Tensor, num_entries: int) -> Tensor:
    return grad_OI.new_empty(num_entries, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values_N, places_M, *_ = inputs
    ctx.num_entries = len(values_N)
    ctx.save_for_backward(places_M)


def _differentiate(ctx: Any, grad_OI: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient(grad_OI, *ctx.saved_tensors, ctx.num_entries), None, None, None, None


_inverse.register_autograd(_differentiate, setup_context=_save)
