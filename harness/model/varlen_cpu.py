"""Varlen attention on the CPU: torch's FlashAttention for the CPU, called once for all samples of one length.

Packed samples in a row under one dense mask cost the square of the row, of which they need the sum of their own squares
alone: at 22 samples of 23 tokens in a row of 512 tokens, a tenth of the time.

Shapes: T tokens of all samples, N samples of one length L, H query heads, G key and value heads, D width of a head.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Places = slice | Tensor


class Attention(torch.autograd.Function):
    """`forward` and `backward` below under autograd, for what is not compiled."""

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
    ) -> Tensor:
        """Returns the result (T, H, D); arguments as of the operator."""
        out_THD, lse_HT = forward(q_THD, k_TGD, v_TGD, cu_seqlens, scale, causal)
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens)
        ctx.scale, ctx.causal = scale, causal
        return out_THD

    @staticmethod
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of queries, keys and values."""
        q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens = ctx.saved_tensors
        kept = (q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens, ctx.scale, ctx.causal)
        return (*backward(grad_THD, *kept), None, None, None)


def forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns the result (T, H, D) and the log of the softmax's denominators, (H, T); arguments as of the operator."""
    out_THD = torch.empty_like(q_THD)
    k_THD, v_THD = (_for_each_head(tensor, q_THD) for tensor in (k_TGD, v_TGD))
    lse_HT = q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=torch.promote_types(q_THD.dtype, torch.float32))
    for places, length in _groups(cu_seqlens):
        q_NHLD, k_NHLD, v_NHLD = _taken(places, length, q_THD, k_THD, v_THD)
        out_NHLD, lse_NHL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_NHLD, k_NHLD, v_NHLD, 0.0, causal, scale=scale
        )
        out_THD[places] = out_NHLD.transpose(1, 2).flatten(0, 1)
        lse_HT[:, places] = lse_NHL.transpose(0, 1).flatten(1)
    return out_THD, lse_HT


def backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values."""
    k_THD, v_THD = (_for_each_head(tensor, q_THD) for tensor in (k_TGD, v_TGD))
    grads_THD = torch.empty_like(q_THD), torch.empty_like(k_THD), torch.empty_like(v_THD)
    for places, length in _groups(cu_seqlens):
        grad_NHLD, q_NHLD, k_NHLD, v_NHLD, out_NHLD = _taken(places, length, grad_THD, q_THD, k_THD, v_THD, out_THD)
        lse_NHL = lse_HT[:, places].view(len(lse_HT), -1, length).transpose(0, 1)
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_NHLD, q_NHLD, k_NHLD, v_NHLD, out_NHLD, lse_NHL, 0.0, causal, scale=scale
        )
        for whole_THD, part_NHLD in zip(grads_THD, parts, strict=True):
            whole_THD[places] = part_NHLD.transpose(1, 2).flatten(0, 1)
    grad_q_THD, grad_k_THD, grad_v_THD = grads_THD
    return grad_q_THD, _summed(grad_k_THD, k_TGD), _summed(grad_v_THD, v_TGD)


def _for_each_head(tensor_TGD: Tensor, q_THD: Tensor) -> Tensor:
    """Returns keys or values (T, H, D), those of a group once for each query head that it serves."""
    served = q_THD.shape[1] // tensor_TGD.shape[1]
    # Stacking and adding whole tensors takes half the time of `repeat_interleave`, and a third of a sum over heads.
    return tensor_TGD if served == 1 else torch.stack([tensor_TGD] * served, 2).flatten(1, 2)


def _summed(grad_THD: Tensor, like_TGD: Tensor) -> Tensor:
    """Returns what query heads bring to the keys or values (T, G, D) that serve them."""
    first_TGD, *others_TGD = grad_THD.view(*like_TGD.shape[:2], -1, like_TGD.shape[2]).unbind(2)
    return sum(others_TGD, first_TGD)


def _groups(cu_seqlens: Tensor) -> Iterator[tuple[Places, int]]:
    """Yields the places of all tokens in samples of one length, and that length."""
    starts: dict[int, list[int]] = defaultdict(list)
    for start, end in pairwise(cu_seqlens.tolist()):
        starts[end - start].append(start)
    starts.pop(0, None)
    for length, group in starts.items():
        if group[-1] - group[0] == length * (len(group) - 1):
            yield slice(group[0], group[-1] + length), length
        else:
            yield (torch.tensor(group)[:, None] + torch.arange(length)).flatten(), length


def _taken(places: Places, length: int, *tensors_THD: Tensor) -> list[Tensor]:
    """Returns (N, H, L, D) of each."""
    return [tensor[places].view(-1, length, *tensor.shape[1:]).transpose(1, 2) for tensor in tensors_THD]
