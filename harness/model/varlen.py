"""Attention over samples laid end to end, by the FlashAttention kernels that come with torch (arXiv 2307.08691).

`torch.nn.attention.varlen` wraps the same two ATen operators, but its arguments change from one torch version to the
next; the part of the operators used here is the same from 2.11 to 2.13. They are wrapped as custom operators, which
`torch.compile` takes into its graph whole. What runs on the CPU is `varlen_cpu`, and uncompiled without the operators,
whose calls cost as much there as attention over a few tokens.

Shapes: T tokens of all samples, C samples, H query heads, G key and value heads (a divisor of H), D width of a head.
"""

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from harness.model import varlen_cpu, varlen_cute
from harness.model.direct import is_direct


class Kernel(Enum):
    """Whose kernels run on a GPU."""

    torch = "torch"
    """FlashAttention-2, as it comes with torch."""
    cute = "cute"
    """FlashAttention-4 (package flash-attn-4), made for Hopper and later."""


_kernel = Kernel.torch


def use_kernel(kernel: Kernel) -> None:
    """Chooses the kernels that the operators below run in this process."""
    global _kernel
    _kernel = kernel


def varlen_attention(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | Tensor,
    scale: float,
    causal: bool,
) -> Tensor:
    """Returns softmax(q k^T scale) v of shape (T, H, D), in which a token sees its own sample alone.

    Args:
        q_THD: Queries; on a GPU bfloat16 or float16, D a multiple of 8 and at most 256.
        k_TGD: Keys of the same type; each head serves H / G query heads.
        v_TGD: Values of the same type.
        cu_seqlens: (C + 1,) int32, where each sample begins, and T.
        max_seqlen: Tokens of the longest sample; a scalar tensor on the CPU does not become part of a compiled program.
        scale: Factor of the scores.
        causal: A token sees no later one.
    """
    q_THD, k_TGD, v_TGD = (tensor.contiguous() for tensor in (q_THD, k_TGD, v_TGD))
    # Tensors that trace a step, for a prediction of its memory, have no lengths to read.
    if is_direct(q_THD) and type(cu_seqlens) is Tensor:
        return varlen_cpu.Attention.apply(q_THD, k_TGD, v_TGD, cu_seqlens, scale, causal)  # type: ignore[return-value]
    longest = max_seqlen if isinstance(max_seqlen, Tensor) else torch.tensor(max_seqlen)
    return _forward(q_THD, k_TGD, v_TGD, cu_seqlens, longest, scale, causal)[0]


@torch.library.custom_op("harness::varlen_attention", mutates_args=(), device_types="cuda")
def _forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns the result (T, H, D) and the log of the softmax's denominators, (H, T) in float32 at least."""
    longest = int(max_seqlen)
    if _kernel is Kernel.cute:
        return varlen_cute.forward(q_THD, k_TGD, v_TGD, cu_seqlens, longest, scale, causal)
    out_THD, lse_HT, *_ = torch.ops.aten._flash_attention_forward(
        q_THD, k_TGD, v_TGD, cu_seqlens, cu_seqlens, longest, longest, 0.0, causal, False, scale=scale
    )
    return out_THD, lse_HT


@torch.library.custom_op("harness::varlen_attention_backward", mutates_args=(), device_types="cuda")
def _backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values."""
    longest = int(max_seqlen)
    if _kernel is Kernel.cute:
        return varlen_cute.backward(grad_THD, q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens, longest, scale, causal)
    lengths = (cu_seqlens, cu_seqlens, longest, longest)
    # The state of the random numbers is read for dropout alone, and there is none.
    state = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)
    unused = torch.empty(0, device=q_THD.device)
    return torch.ops.aten._flash_attention_backward(
        grad_THD.contiguous(), q_THD, k_TGD, v_TGD, out_THD, lse_HT, *lengths, 0.0, causal, state, unused, scale=scale
    )


@_forward.register_fake
def _forward_shapes(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(q_THD.dtype, torch.float32)
    return torch.empty_like(q_THD), q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=exact)


@_backward.register_fake
def _backward_shapes(
    grad_THD: Tensor, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_THD), torch.empty_like(k_TGD), torch.empty_like(v_TGD)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THD, k_TGD, v_TGD, cu_seqlens, max_seqlen, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(q_THD, k_TGD, v_TGD, *output, cu_seqlens, max_seqlen)


def _differentiate(ctx: Any, grad_THD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _backward(grad_THD, *ctx.saved_tensors, ctx.scale, ctx.causal)
    return (*grads, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


@_forward.register_kernel("cpu")
def _forward_cpu(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    return varlen_cpu.forward(q_THD, k_TGD, v_TGD, cu_seqlens, scale, causal)


@_backward.register_kernel("cpu")
def _backward_cpu(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return varlen_cpu.backward(grad_THD, q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens, scale, causal)
