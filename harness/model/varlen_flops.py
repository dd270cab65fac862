"""Formulas for `torch.utils.flop_counter`, which knows neither varlen's operators nor sdpa's on the CPU.

Importing the module registers them. Counted as the kernels work: pairs of a query and a key within a sample, under the
causal rule those that it leaves; two products in the forward pass, five in the backward pass, the scores computed again
among them. sdpa works on every pair.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from harness.model import varlen  # noqa: F401 - the operators have to be there


def _pairs(cu_seqlens: Tensor, causal: bool) -> int:
    lengths = cu_seqlens.diff().long()
    return int((lengths * (lengths + 1) // 2 if causal else lengths**2).sum())


@register_flop_formula(torch.ops.harness.varlen_attention, get_raw=True)
def forward(
    q_THD: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scale: float, causal: bool, **_: Any
) -> int:
    """Counts two products."""
    return 2 * 2 * _pairs(cu_seqlens, causal) * q_THD.shape[1] * q_THD.shape[2]


@register_flop_formula(torch.ops.harness.varlen_attention_backward, get_raw=True)
def backward(grad_THD: Tensor, *args: Any, **_: Any) -> int:
    """Counts five products."""
    cu_seqlens, _, _, causal = args[-4:]
    return 5 * 2 * _pairs(cu_seqlens, causal) * grad_THD.shape[1] * grad_THD.shape[2]


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def cpu_forward(q_BHSD: torch.Size, k_BHSD: torch.Size, *args: Any, **_: Any) -> int:
    """Counts two products."""
    return 2 * 2 * q_BHSD.numel() * k_BHSD[2]


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def cpu_backward(grad_BHSD: torch.Size, q_BHSD: torch.Size, k_BHSD: torch.Size, *args: Any, **_: Any) -> int:
    """Counts five products."""
    return 5 * 2 * q_BHSD.numel() * k_BHSD[2]
