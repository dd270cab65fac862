"""Products with frozen weights in float8 (e4m3; Micikevicius et al., arXiv 2209.05433), forward and input gradient.

    y = x W^T      W = diag(s) Q, Q in e4m3, s_e = max_d |W_ed| / 448: a scale for each output, fixed once
                   x = diag(t) P, likewise a scale for each token, found anew each time
    dx = dy W      = (dy diag(s)) Q: the scales of the outputs lie along the sum, so they go into dy before it is
                   rounded, row by row; what is differentiated is the very function computed forward

The device's product takes the right factor by columns. Forward that is Q as it stands; the gradient wants its
transpose, which is kept too (2 bytes a weight, as bfloat16) or made each time (1 byte), to the same values. e4m3 serves
gradients too: with a scale for each token, three bits of mantissa are worth more than e5m2's range.

Shapes: T tokens, D inputs, E outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
"""448."""
_TINY = 1e-30
"""Below any gradient: keeps the scale of a row of zeros, such as padding's gradient, from being 0."""


class Fp8Weight(NamedTuple):
    """A frozen weight in float8; a tuple, so that compiled code takes it for its tensors."""

    data_ED: Tensor
    """By rows."""
    scale_E: Tensor
    """float32."""
    data_DE: Tensor | None
    """The transpose by rows; None is made where it is needed."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight as the products see it, (E, D)."""
        return (self.data_ED.float() * self.scale_E[:, None]).to(dtype)


def quantize(weight_ED: Tensor, keep_transpose: bool) -> Fp8Weight:
    """Returns a weight in float8, with its transpose (see above) or without; nothing of the argument is kept."""
    data_ED, scale_E1 = quantize_rows(weight_ED.detach())
    return Fp8Weight(data_ED, scale_E1[:, 0], data_ED.t().contiguous() if keep_transpose else None)


def quantize_rows(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows in float8, each scaled to fill its range, and the scales (T, 1) in float32."""
    x_TD = x_TD.float()
    scale_T1 = x_TD.abs().amax(-1, keepdim=True).clamp(min=_TINY) / LARGEST
    return (x_TD / scale_T1).to(FLOAT8), scale_T1


def fp8_linear(x: Tensor, weight: Fp8Weight, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns x W^T of shape (..., E), with a gradient to x alone.

    Args:
        x: (..., D) of any floating type.
        weight: W.
        dtype: Of the result; on a GPU bfloat16.
    """
    rows = x.reshape(-1, x.shape[-1])
    y_TE = Fp8Product.apply(rows, weight.data_ED, weight.scale_E, weight.data_DE, dtype)
    return y_TE.view(*x.shape[:-1], y_TE.shape[-1])


class Fp8Product(torch.autograd.Function):
    """Keeps nothing of x: the weight is frozen."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, data_ED: Tensor, scale_E: Tensor, data_DE: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Returns x W^T, (T, E)."""
        ctx.save_for_backward(data_ED, scale_E, data_DE)
        ctx.dtype, ctx.x_dtype = dtype, x_TD.dtype
        return forward_product(x_TD, Fp8Weight(data_ED, scale_E, data_DE), dtype)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        """Returns dy W, (T, D)."""
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        grad_TD = backward_product(grad_TE, Fp8Weight(*ctx.saved_tensors), ctx.dtype)
        return grad_TD.to(ctx.x_dtype), None, None, None, None


def forward_product(x_TD: Tensor, weight: Fp8Weight, dtype: torch.dtype) -> Tensor:
    """Returns x W^T, (T, E), without autograd: for functions that have a gradient of their own."""
    x_q_TD, scale_T1 = quantize_rows(x_TD)
    return _multiply(x_q_TD, weight.data_ED.t(), scale_T1, weight.scale_E[None], dtype)


def backward_product(grad_TE: Tensor, weight: Fp8Weight, dtype: torch.dtype) -> Tensor:
    """Returns dy W, (T, D), without autograd."""
    grad_q_TE, scale_T1 = quantize_rows(grad_TE.float() * weight.scale_E)
    data_DE = weight.data_ED.t().contiguous() if weight.data_DE is None else weight.data_DE
    ones_1D = weight.scale_E.new_ones(1, data_DE.shape[0])
    return _multiply(grad_q_TE, data_DE.t(), scale_T1, ones_1D, dtype)


def _multiply(a_TK: Tensor, b_KN: Tensor, scale_T1: Tensor, scale_1N: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns diag(scale_T1) a b diag(scale_1N); b by columns. On the CPU the same values, in float32."""
    if a_TK.device.type == "cpu":
        # Autocast would round the factors' product in bfloat16.
        with torch.autocast("cpu", enabled=False):
            return ((a_TK.float() @ b_KN.float()) * scale_T1 * scale_1N).to(dtype)
    return torch._scaled_mm(a_TK, b_KN, scale_T1, scale_1N, out_dtype=dtype, use_fast_accum=True)


class Fp8Linear(nn.Linear):
    """A frozen linear layer in float8. `weight` is read-only: the values in use, in the type they had.

    `weight_q` is a parameter, so that it is counted, moves with the model and is no part of DDP's buffers, which each
    forward pass would send around. Scales and transpose follow it by hand: both say the same weights again.
    """

    def __init__(self, weight: Fp8Weight, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """Args: the weight, the bias and the type of the weight as it was, which the result has outside autocast."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.data_ED.shape
        self.weight_q = nn.Parameter(weight.data_ED, requires_grad=False)
        self.weight_scale = weight.scale_E
        self.weight_t = weight.data_DE
        self.bias = bias  # type: ignore[assignment]
        self.dtype = dtype

    @property
    def fp8(self) -> Fp8Weight:
        """The weight, for functions that multiply with it themselves."""
        return Fp8Weight(self.weight_q, self.weight_scale, self.weight_t)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(E, D): for methods that look at weights, such as DoRA's norms."""
        return self.fp8.dequantized(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        y = fp8_linear(x, self.fp8, dtype)
        return y if self.bias is None else y + self.bias.to(dtype)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fp8Linear":
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        self.weight_scale = function(self.weight_scale)
        self.weight_t = None if self.weight_t is None else function(self.weight_t)
        return self
