"""The loss of supervised tokens without the logits of all of them (Liger: Hsu et al., arXiv 2410.10989, section 3.2).

    z = h W^T,  loss = sum_k w_k (logsumexp z_k - z_k[t_k]),  dloss/dh_k = w_k (softmax z_k - onehot t_k) W

CHUNK tokens at a time, so that float32 logits never take more than CHUNK x V. Where W is frozen, loss and gradient of h
come out of one pass in the forward, and the backward pass only scales. Any other head (trained, adapted, with rows of
new tokens, quantised, tied to a trained embedding) is called as a module, and several chunks are computed again in the
backward pass.

Unlike the paper, a trained W has no gradient from the forward pass: held until the backward pass of all layers is
through, it would cost V x D more at the peak, and the head is a tenth of the work at most. Nothing waits for the
device. A compiled head carries `slopes` (`harness/model/compiled.py`). torch 2.13 has `linear_cross_entropy`, but 2.11
has not, and without reduction it computes logits twice.

Shapes: K supervised tokens, C tokens of a chunk, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Tokens whose logits are there at once: 0.6 GB in float32 with Qwen3-VL's vocabulary, enough to fill a GPU."""
GATHERS = "gathers"
"""Attribute of a head whose hooks gather its weights from all ranks. Each rank has a number of chunks of its own, and
so the module is called once a micro-batch, around all of them."""
_HALF_SCALE = 4096.0
"""Factor on the gradient of logits in float16: a probability of one in V lies below its normal numbers."""
Slopes = Callable[[Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
OverChunks = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Takes what makes logits, and what the head sees (K, D); returns the loss of each token (K,)."""


def head_loss(
    hidden_KD: Tensor, head: nn.Module, targets_K: Tensor, weights_K: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy summed over tokens, and that of each token without gradient (K,), both float32.

    Args:
        hidden_KD: What the head sees.
        head: Makes logits of it.
        targets_K: The tokens to predict.
        weights_K: Factor on the loss of each token; None stands for ones.
    """
    if is_frozen_matrix(head):
        # Inside of a Function gradients look wanted in validation too.
        hidden_KD = hidden_KD if torch.is_grad_enabled() else hidden_KD.detach()
        slopes = getattr(head, "slopes", plain_slopes)
        return _FrozenHead.apply(hidden_KD, head.weight, targets_K, weights_K, slopes)  # type: ignore[return-value]
    return _called(hidden_KD, head, targets_K, weights_K)


def is_frozen_matrix(head: nn.Module) -> bool:
    """Whether a head is a product with a plain matrix that does not train, and nothing else happens in it."""
    return (
        type(head) is nn.Linear
        and type(weight := head.weight) is nn.Parameter
        and not weight.requires_grad
        and head.bias is None
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
    )


def chunk_loss(
    hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, weights_C: Tensor | None, slopes: Slopes
) -> tuple[Tensor, Tensor]:
    """Returns the loss of each token of a chunk (C,), and the gradient of their sum with respect to `hidden_CD`.

    Args:
        hidden_CD: In the type of `weight_VD`.
        weight_VD: The head.
        targets_C: As for `head_loss`.
        weights_C: As for `head_loss`.
        slopes: `plain_slopes` or `fused_slopes`.
    """
    factor = _HALF_SCALE if weight_VD.dtype is torch.float16 else 1.0
    loss_C, slope_CV = slopes(F.linear(hidden_CD, weight_VD), targets_C, weights_C, factor)
    slope_CD = slope_CV @ weight_VD
    return loss_C, slope_CD if factor == 1 else slope_CD.float() / factor


def plain_slopes(
    logits_CV: Tensor, targets_C: Tensor, weights_C: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    """Returns the loss of each token (C,), and `factor` times its gradient by the logits, in their type."""
    log_probs_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    index_C1 = targets_C.unsqueeze(1)
    loss_C = -log_probs_CV.gather(1, index_C1).squeeze(1)
    slope_CV = log_probs_CV.exp_()
    slope_CV.scatter_add_(1, index_C1, slope_CV.new_full((1, 1), -1.0).expand_as(index_C1))
    if weights_C is not None:
        loss_C = loss_C * weights_C
        slope_CV.mul_(weights_C.unsqueeze(1))
    if factor != 1:
        slope_CV.mul_(factor)
    return loss_C, slope_CV.to(logits_CV.dtype)


def fused_slopes(
    logits_CV: Tensor, targets_C: Tensor, weights_C: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    """As `plain_slopes`, written for a compiler: nothing of (C, V) in float32 has to stand in memory."""
    index_C1, numbers_V = targets_C.unsqueeze(1), torch.arange(logits_CV.shape[1], device=logits_CV.device)
    log_sum_C1 = logits_CV.float().logsumexp(1, keepdim=True)
    loss_C = (log_sum_C1 - logits_CV.gather(1, index_C1).float()).squeeze(1)
    slope_CV = (logits_CV.float() - log_sum_C1).exp()
    slope_CV = factor * torch.where(numbers_V == index_C1, slope_CV - 1, slope_CV)
    if weights_C is not None:
        loss_C = loss_C * weights_C
        slope_CV = slope_CV * weights_C.unsqueeze(1)
    return loss_C, slope_CV.to(logits_CV.dtype)


class _FrozenHead(torch.autograd.Function):
    """Computes loss and gradient together, chunk by chunk; without gradients wanted, the loss alone."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, weights_K: Tensor | None, slopes: Slopes
    ) -> tuple[Tensor, Tensor]:
        device_type, ctx.dtype = hidden_KD.device.type, hidden_KD.dtype
        if (compute := _autocast_dtype(device_type)) is not None:
            hidden_KD, weight_VD = hidden_KD.to(compute), weight_VD.to(compute)
        parts = zip(*(_split(part, len(targets_K)) for part in (hidden_KD, targets_K, weights_K)), strict=True)
        with torch.autocast(device_type, enabled=False):
            if not ctx.needs_input_grad[0]:
                loss_K = torch.cat([_cross_entropy(F.linear(h, weight_VD), t, w) for h, t, w in parts])
            else:
                results = (chunk_loss(h, weight_VD, t, w, slopes) for h, t, w in parts)
                losses, gradients = zip(*results, strict=True)
                loss_K = torch.cat(losses)
                ctx.save_for_backward(torch.cat(gradients))
        ctx.mark_non_differentiable(loss_K)
        return loss_K.sum(), loss_K

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope_KD,) = ctx.saved_tensors
        return (slope_KD.float() * grads[0]).to(ctx.dtype), None, None, None, None


def _called(hidden_KD: Tensor, head: nn.Module, targets_K: Tensor, weights_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """Calls the head under autograd; the logits of one chunk alone are kept, those of several are made again."""

    def over_chunks(logits_of: Callable[[Tensor], Tensor], hidden_KD: Tensor) -> Tensor:
        work: Any = partial(_called_chunk, logits_of)
        if torch.is_grad_enabled() and len(targets_K) > CHUNK:
            work = partial(checkpoint, work, use_reentrant=False)
        parts = zip(*(_split(part, len(targets_K)) for part in (hidden_KD, targets_K, weights_K)), strict=True)
        return torch.cat([work(*part) for part in parts])

    gathers = getattr(head, GATHERS, False)
    loss_K = _in_one_call(head, over_chunks, hidden_KD) if gathers else over_chunks(head, hidden_KD)
    return loss_K.sum(), loss_K.detach()


def _in_one_call(head: nn.Module, over_chunks: OverChunks, hidden_KD: Tensor) -> Tensor:
    """Goes over the chunks within a single call of the module, whose hooks see the tokens' losses for its output."""
    own = vars(head).get("forward")
    head.forward = partial(over_chunks, head.forward)
    try:
        return head(hidden_KD)
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def _called_chunk(
    logits_of: Callable[[Tensor], Tensor], hidden_CD: Tensor, targets_C: Tensor, weights_C: Tensor | None
) -> Tensor:
    return _cross_entropy(logits_of(hidden_CD), targets_C, weights_C)


def _cross_entropy(logits_CV: Tensor, targets_C: Tensor, weights_C: Tensor | None) -> Tensor:
    loss_C = F.cross_entropy(logits_CV.float(), targets_C, reduction="none")
    return loss_C if weights_C is None else loss_C * weights_C


def _split(part: Tensor | None, num_tokens: int) -> list[Tensor] | list[None]:
    """Cuts into chunks as equal as can be, one at least: like shapes are like work."""
    num_chunks = max(1, -(-num_tokens // CHUNK))
    return [None] * num_chunks if part is None else list(part.tensor_split(num_chunks))


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
