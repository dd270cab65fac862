"""The varlen operators by FlashAttention-4 (package flash-attn-4), whose kernels are made for Hopper and later GPUs.

Its two inner functions are called, for the public one brings an autograd of its own, which torch.compile can not take
into a graph. They are not the package's promise: the extra `hopper` of pyproject.toml pins the version.

Shapes: as in `varlen`.
"""

from torch import Tensor


def forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, longest: int, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns the result (T, H, D) and the log of the softmax's denominators, (H, T) float32."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out_THD, lse_HT, *_ = _flash_attn_fwd(
        q_THD,
        k_TGD,
        v_TGD,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=causal,
        return_lse=True,
    )
    return out_THD, lse_HT


def backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values."""
    from flash_attn.cute.interface import _flash_attn_bwd

    grads = _flash_attn_bwd(
        q_THD,
        k_TGD,
        v_TGD,
        out_THD,
        grad_THD.contiguous(),
        lse_HT,
        scale,
        causal,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
    )
    return grads[0], grads[1], grads[2]
