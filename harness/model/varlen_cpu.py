"""Varlen attention on the CPU: torch's FlashAttention for the CPU, called once for all samples of one length.

Packed samples in a row under one dense mask cost the square of the row, of which they need the sum of their own squares
alone: at 22 samples of 23 tokens in a row of 512 tokens, a tenth of the time.

Shapes: T tokens of all samples, N samples of one length L, H query heads, G key and value heads, D width of a head.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

Places = slice | Tensor


def forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns the result (T, H, D) and the log of the softmax's denominators, (H, T); arguments as of the operator."""
    out_THD = torch.empty_like(q_THD)
    lse_HT = q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=torch.promote_types(q_THD.dtype, torch.float32))
    for places, length in _groups(cu_seqlens):
        q_NHLD, k_NHLD, v_NHLD = _taken(places, length, q_THD, k_TGD, v_TGD)
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
    grads = torch.empty_like(q_THD), torch.empty_like(k_TGD), torch.empty_like(v_TGD)
    for places, length in _groups(cu_seqlens):
        q_NHLD, k_NHLD, v_NHLD = _taken(places, length, q_THD, k_TGD, v_TGD)
        grad_NHLD, out_NHLD, _ = _taken(places, length, grad_THD, out_THD, out_THD)
        lse_NHL = lse_HT[:, places].unflatten(1, (-1, length)).transpose(0, 1)
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_NHLD, q_NHLD, k_NHLD, v_NHLD, out_NHLD, lse_NHL, 0.0, causal, scale=scale
        )
        for whole_TGD, part_NHLD in zip(grads, parts, strict=True):
            part_THD = part_NHLD.transpose(1, 2).flatten(0, 1)
            shared = part_THD.unflatten(1, (whole_TGD.shape[1], -1))
            whole_TGD[places] = shared.sum(2) if shared.shape[2] > 1 else part_THD
    return grads


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


def _taken(places: Places, length: int, *tensors_TGD: Tensor) -> list[Tensor]:
    """Returns (N, H, L, D) of each, with keys and values for each of the H heads that the first one has."""
    heads = tensors_TGD[0].shape[1]
    taken = [tensor[places].unflatten(0, (-1, length)).transpose(1, 2) for tensor in tensors_TGD]
    return [item if item.shape[1] == heads else item.repeat_interleave(heads // item.shape[1], 1) for item in taken]
