"""Shifted sparse attention (S2-Attn; Chen et al., arXiv 2309.12307, section 3.2): cheap training on long samples.

The tokens of a sample are split into groups, and a token sees its own group alone. For half of the heads the groups
begin half a group later, so that what a token knows spreads from layer to layer. The cost of S tokens falls from S^2
to S times the length of a group.

Both halves run in one call of the kernel below: they are laid one behind the other as if they were different samples.
Evaluation and generation see everything, as in the paper.

Deviations: the paper rolls the tokens, which puts the last half group into a group with the first one, and lets the
first tokens see the last ones; here these half groups are groups of their own. Groups never reach across the samples of
a pack. Where one group holds the whole sample, nothing is shifted: that is full attention. The halves are halves of the
heads of keys and values, with the query heads that each serves.

Shapes: B rows, S tokens of a row, T = B S, C samples and runs of padding, N groups of a sample at most, H query heads,
G key and value heads, D width of a head.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.errors import reject


@dataclass(frozen=True, slots=True)
class Groups:
    """How long the groups of a sample are."""

    ratio: float
    """Of the sample's length, rounded up; in (0, 1]."""
    size: int | None = None
    """In tokens, instead."""

    def longest(self, longest: int) -> int:
        """Returns the tokens of the largest group in samples of up to so many tokens."""
        return max(1, math.ceil(longest * self.ratio)) if self.size is None else min(self.size, longest)

    def starts(self, cu_seqlens: Tensor, longest: int, shifted: bool) -> Tensor:
        """Returns where groups begin, and T, as an int32 tensor like `cu_seqlens` of a length that is known beforehand.

        A sample with fewer groups than N + 1 has empty ones: to leave them out, the device would have to be asked.

        Args:
            cu_seqlens: (C + 1,) int32, where samples begin, and T.
            longest: Tokens of the longest sample.
            shifted: Whether groups begin half a group later.
        """
        lengths_C = cu_seqlens.diff().long()
        if self.size is None:
            size_C = (lengths_C.double() * self.ratio).ceil().long().clamp(min=1)
            most = math.floor(1 / self.ratio) + 1
        else:
            size_C = torch.full_like(lengths_C, self.size)
            most = math.ceil(longest / self.size)
        shift_C = torch.where(size_C < lengths_C, size_C // 2, 0) if shifted else torch.zeros_like(size_C)
        steps_N = torch.arange(most + 1, device=cu_seqlens.device)
        starts_CN = (steps_N * size_C[:, None] - shift_C[:, None]).clamp(min=0).minimum(lengths_C[:, None])
        starts_CN = starts_CN + cu_seqlens[:-1, None]
        return torch.cat([starts_CN.flatten(), cu_seqlens[-1:]]).int()


def use_shifted_sparse(model: PreTrainedModel, groups: Groups) -> None:
    """Makes the text side of a model train with shifted sparse attention, in place, on the kernel that it has.

    Raises:
        UserError: The kernel can not do it, or heads of keys and values can not be halved.
    """
    language: Any = model.model.language_model
    config = language.config
    name = config._attn_implementation
    if name not in _KERNELS:
        raise reject("model.attention", name, f"does no shifted sparse attention; set one of {sorted(_KERNELS)}")
    if config.num_key_value_heads % 2:
        heads = config.num_key_value_heads
        raise reject("tuner", "longlora", f"halves the heads, and this checkpoint has {heads} of keys; use tuner=lora")
    shifted = f"{name}_shifted"
    AttentionInterface.register(shifted, partial(_attend, ALL_ATTENTION_FUNCTIONS[name], _KERNELS[name]))
    AttentionMaskInterface.register(shifted, ALL_MASK_ATTENTION_FUNCTIONS[name])
    for layer in language.layers:
        layer.self_attn.attention_groups = groups
    language.set_attn_implementation(shifted)


def _attend(
    full: Any,
    separate: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: (B, H, S, D) and (B, G, S, D) in, (B, S, H, D) out.

    Args:
        full: The kernel without groups.
        separate: Returns the arguments that keep groups apart, for a kernel given both halves of the heads.
        module: The attention layer.
        query: Rotated already, with mRoPE's positions in the sample: groups change nothing about them.
        key: The same.
        value: Of the same heads as the keys.
        attention_mask: Passed on where everything is seen; groups keep to a sample, and need no other mask.
        cu_seq_lens_q: (C + 1,) int32, where samples begin in the flattened (B, S).
        max_length_q: Tokens of the longest.
        kwargs: Passed on.
    """
    if not module.training:
        told = {"cu_seq_lens_q": cu_seq_lens_q, "max_length_q": max_length_q}
        return full(module, query, key, value, attention_mask, **told, **kwargs)
    assert cu_seq_lens_q is not None and max_length_q is not None, "training goes through harness.model.forward"
    groups: Any = module.attention_groups
    halves = [groups.starts(cu_seq_lens_q, max_length_q, shifted) for shifted in (False, True)]
    folded = (_fold(tensor) for tensor in (query, key, value))
    out, _ = full(module, *folded, **separate(halves, query, groups.longest(max_length_q)), **kwargs)
    return out.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3), None


def _fold(heads_BHSD: Tensor) -> Tensor:
    """Returns (2 B, H / 2, S, D): the halves of a row's heads as rows, one behind the other."""
    return heads_BHSD.unflatten(1, (2, -1)).flatten(0, 1)


def _by_starts(halves: list[Tensor], query: Tensor, longest: int) -> dict[str, Any]:
    """For varlen, whose batch is one row of T tokens: the second half of the heads follows as T tokens more."""
    first, second = halves
    assert query.shape[0] == 1
    return {
        "attention_mask": None,
        "cu_seq_lens_q": torch.cat([first[:-1], second + query.shape[2]]),
        "max_length_q": longest,
    }


def _by_mask(halves: list[Tensor], query: Tensor, longest: int) -> dict[str, Any]:
    """For sdpa: a mask (2 B, 1, S, S) of its own for each half of a row's heads."""
    rows, _, length, _ = query.shape
    places_T = torch.arange(rows * length, device=query.device, dtype=torch.int32)
    group_B2S = torch.stack(
        [torch.searchsorted(starts, places_T, right=True).view(rows, length) for starts in halves], dim=1
    )
    same_B2SS = group_B2S.unsqueeze(-1) == group_B2S.unsqueeze(-2)
    return {"attention_mask": same_B2SS.tril().flatten(0, 1).unsqueeze(1)}


_KERNELS = {"sdpa": _by_mask, "varlen": _by_starts}
"""The kernels that can be told of groups, by their names in transformers."""
