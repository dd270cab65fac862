"""Rotates queries and keys (RoPE: Su et al., arXiv 2104.09864) with its gradient in closed form.

    y = (x1 cos - x2 sin, x2 cos + x1 sin), and for the gradient the same by the opposite angle

In a third less operations than autograd's, in both passes: at small sizes on the CPU their number is what a step costs.
Elsewhere the stock function runs (`direct.py`).

Shapes: B rows, S tokens of a row, H query heads, G key heads, D width of a head, E half of it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from harness.model.direct import is_direct


def rotate(query_BHSD: Tensor, key_BGSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns queries and keys rotated, as the stock function does."""
    if not is_direct(query_BHSD):
        return apply_rotary_pos_emb(query_BHSD, key_BGSD, cos_BSD, sin_BSD)
    # The second half of the angles repeats the first.
    sin_B1SE = sin_BSD[..., : sin_BSD.shape[-1] // 2].unsqueeze(1)
    return _Rotation.apply(query_BHSD, key_BGSD, cos_BSD.unsqueeze(1), sin_B1SE)  # type: ignore[return-value]


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BHSD: Tensor, key_BGSD: Tensor, cos_B1SD: Tensor, sin_B1SE: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_B1SD, sin_B1SE)
        return _turn(query_BHSD, cos_B1SD, sin_B1SE, 1), _turn(key_BGSD, cos_B1SD, sin_B1SE, 1)

    @staticmethod
    def backward(ctx: Any, grad_query_BHSD: Tensor, grad_key_BGSD: Tensor) -> tuple[Tensor | None, ...]:
        cos_B1SD, sin_B1SE = ctx.saved_tensors
        grads = (_turn(grad, cos_B1SD, sin_B1SE, -1) for grad in (grad_query_BHSD, grad_key_BGSD))
        return (*grads, None, None)


def _turn(x_BHSD: Tensor, cos_B1SD: Tensor, sin_B1SE: Tensor, direction: int) -> Tensor:
    """Rotates by the angles, or by their opposites."""
    turned_BHSD = x_BHSD * cos_B1SD
    first, second = x_BHSD.chunk(2, -1)
    turned_first, turned_second = turned_BHSD.chunk(2, -1)
    turned_first.addcmul_(second, sin_B1SE, value=-direction)
    turned_second.addcmul_(first, sin_B1SE, value=direction)
    return turned_BHSD
