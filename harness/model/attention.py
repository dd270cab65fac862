"""Which attention kernel a model runs, and `varlen` under transformers' interface.

Shapes: B rows, S tokens of a row, T = B S, C samples and runs of padding, H query heads, G key and value heads, D width
of a head.
"""

import importlib.util
import logging
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.errors import UserError, reject
from harness.model.qwen3_vl import Attention
from harness.model.varlen import Kernel, use_kernel, varlen_attention

log = logging.getLogger(__name__)

_PACKAGES = {
    Attention.flash_attention_2: ("flash_attn", "pip install flash-attn --no-build-isolation"),
    Attention.flash_attention_3: ("flash_attn_interface", "build flash-attention's hopper folder"),
    Attention.flash_attention_4: ("flash_attn.cute", "pip install -e '.[hopper]'"),
}
_TEXT = Attention.varlen.name
_VISION = "flash_varlen"
"""Name of varlen in the vision tower, which hands over its `cu_seqlens` only where the name contains `flash`."""
SHARED = "_shared"
"""Ends the name of a kernel that runs a share of the heads (`harness.model.ulysses`)."""
_OLDEST = (8, 0)
"""Compute capability from which on torch's FlashAttention kernels run."""
_HOPPER = (9, 0)
"""And from which on those of FlashAttention-4 are the faster ones."""


def check_available(wanted: Attention) -> None:
    """Refuses a kernel that this machine does not have.

    Raises:
        UserError: The kernel's package is not installed, or it needs a GPU.
    """
    if wanted is Attention.varlen and (reason := _no_varlen()):
        raise reject("model.attention", wanted.name, f"{reason}; use sdpa here")
    if wanted in _PACKAGES:
        package, command = _PACKAGES[wanted]
        if not _installed(package):
            raise reject("model.attention", wanted.name, f"the package {package} is not installed: {command}")
        if not torch.cuda.is_available():
            raise reject("model.attention", wanted.name, "needs a GPU; use sdpa here")


def pick_attention(wanted: Attention, dtype: torch.dtype) -> str:
    """Returns the name of the kernel to use, for auto with a line in the log.

    Args:
        wanted: The setting.
        dtype: Type of the weights.

    Raises:
        UserError: The kernel is not available, or does not take the type of the weights.
    """
    check_available(wanted)
    fits = dtype in (torch.bfloat16, torch.float16) or not torch.cuda.is_available()
    reason = None if fits else f"takes weights of 16 bits, and these are {dtype}"
    if wanted in (Attention.varlen, Attention.flash_attention_4) and reason:
        raise reject("model.attention", wanted.name, f"{reason}; set model.dtype=bfloat16, or use sdpa")
    if wanted is not Attention.auto:
        return wanted.name
    reason = _no_varlen() or reason
    picked = Attention.sdpa if reason else Attention.flash_attention_4 if _has_newest() else Attention.varlen
    log.info("model.attention=auto picked %s%s", picked.name, f": varlen {reason}" if reason else "")
    return picked.name


def use_varlen(model: PreTrainedModel, kernel: Kernel = Kernel.torch) -> None:
    """Makes both towers of a model run varlen, in place: the text with samples apart, the ViT with frames apart.

    Args:
        model: The Qwen3-VL.
        kernel: Whose kernels run on a GPU, in all models of this process.
    """
    use_kernel(kernel)
    for name in (_TEXT, _VISION):
        AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(_TEXT, sdpa_mask)
    model.set_attn_implementation({"": _TEXT, "text_config": _TEXT, "vision_config": _VISION})


def takes_cu_seqlens(name: str) -> bool:
    """Returns whether the text side's kernel is told where samples begin, and so takes one row without a mask."""
    return name.startswith((_TEXT, "flash_attention_"))


def max_length(tower: nn.Module, longest: int) -> int | Tensor:
    """Returns the longest sample as the tower's kernel takes it.

    varlen takes it as a tensor on the CPU: a number would be part of a compiled program, which each new one would have
    to be compiled for.
    """
    kind: Any = tower.config
    name = kind._attn_implementation.removesuffix(SHARED)
    return torch.tensor(longest) if name in (_TEXT, _VISION) else longest


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (B, H, S, D) and (B, G, S, D) in, (B, S, H, D) out.

    Without `cu_seq_lens_q` it is sdpa, with the mask that was made for sdpa: so generation calls it, whose samples
    stand in rows of their own behind a cache of keys, and the stock forward pass.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    if dropout:
        raise UserError(f"model.attention=varlen has no dropout, and the checkpoint's attention_dropout is {dropout}")
    assert max_length_q is not None
    kind = value.device.type
    # A normalisation with float32 weights turns queries and keys into float32; values keep the type of the products.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    q_THD, k_TGD, v_TGD = (tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value))
    causal = bool(module.is_causal) if is_causal is None else is_causal
    out_THD = varlen_attention(q_THD, k_TGD, v_TGD, cu_seq_lens_q, max_length_q, scaling, causal)
    return out_THD.view(query.shape[0], -1, *out_THD.shape[1:]), None


def _no_varlen() -> str | None:
    """Returns why this machine can not run varlen, or None: the CPU has an implementation of its own."""
    if not torch.cuda.is_available():
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return "needs a torch that was built with FlashAttention"
    if torch.cuda.get_device_capability() < _OLDEST:
        return "needs a GPU of compute capability {}.{} or later".format(*_OLDEST)
    return None


def _has_newest() -> bool:
    return (
        torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= _HOPPER
        and _installed(_PACKAGES[Attention.flash_attention_4][0])
    )


def _installed(package: str) -> bool:
    """Looks for a package and, first, its parents: `find_spec` raises where a parent is missing."""
    return all(importlib.util.find_spec(name) for name in accumulate(package.split("."), "{}.{}".format))
