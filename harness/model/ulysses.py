"""DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509): ranks share a sequence, in attention they share its heads.

All of a layer works on a slice of N / P tokens but attention, around which two all-to-alls go: slices of queries, keys
and values with all heads become all tokens with 1 / P of the heads (section 3.1), and the result goes the way back. A
rank sends and receives (P - 1) / P of 2 (H + G) D N / P values a layer, in the paper's count 4 N h / P without grouped
heads, where gathering keys and values would not shrink with P.

Deviations from the paper: queries, keys and values travel in one exchange; grouped heads of keys and values fewer than
P are sent to each rank whose queries they serve; visual tokens' features come from the rank that ran the vision tower
on the image, to the slices that they stand in, by an exchange of unequal parts. Batch, positions and targets are sliced
in the loader (`harness.data.share`); packed samples stay apart by the whole row's `cu_seqlens`.

The exchange is an operator with a gradient of its own, the exchange back. So `torch.compile` takes it into a block's
program whole, and a checkpointed layer runs it again in the backward pass, on all ranks in the same order.

Shapes: B rows, S tokens of a row, T = B S, P ranks, L = T / P tokens of a slice, H query heads, G key and value heads,
D width of a head, F visual tokens of a rank's images, W those in its slice, E values of K levels.
"""

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.errors import reject
from harness.model.attention import SHARED

if TYPE_CHECKING:
    from harness.data.batch import Share

_KEY = "memory.sequence_parallel"
_KERNELS = ("varlen", "sdpa")
_groups: dict[str, Any] = {}
"""Process groups by name: an operator takes no other reference to one."""


def check_heads(text: Any, ranks: int) -> None:
    """Refuses numbers of heads that ranks can not share.

    Args:
        text: Config of the text model.
        ranks: That share a sequence.

    Raises:
        UserError: Heads do not go into as many equal shares.
    """
    heads, pairs = text.num_attention_heads, text.num_key_value_heads
    if heads % ranks:
        raise reject(_KEY, ranks, f"the checkpoint has {heads} attention heads, which are shared out; give a divisor")
    if pairs % ranks and ranks % pairs:
        remedy = f"the checkpoint has {pairs} heads of keys and values; give a divisor or a multiple of that"
        raise reject(_KEY, ranks, remedy)


def share_sequences(model: PreTrainedModel, ranks: int, timeout_s: float) -> None:
    """Makes neighbouring ranks share sequences, in place. Collective: all ranks of the run call it together.

    Generation and all other calls of the stock forward pass stay as they are.

    Args:
        model: The Qwen3-VL, its attention kernel chosen.
        ranks: That share a sequence, a divisor of their number.
        timeout_s: Seconds that they wait for each other.

    Raises:
        UserError: The kernel does not run under this.
    """
    language: Any = model.model.language_model
    name = language.config._attn_implementation
    if name not in _KERNELS:
        raise reject("model.attention", name, f"does not run with {_KEY}={ranks}; set one of {', '.join(_KERNELS)}")
    if name != "varlen" and language.config.num_key_value_heads % ranks:
        remedy = f"{_KEY}={ranks} leaves no whole group of heads to a rank, which only varlen can do; set varlen"
        raise reject("model.attention", name, remedy)
    if model.device.type == "cuda" and dist.get_backend() != "nccl":
        raise reject(
            "trainer.ddp_backend", dist.get_backend(), f"does not exchange on GPUs what {_KEY} asks for; use nccl"
        )
    for first in range(0, dist.get_world_size(), ranks):
        # Every rank makes every group, its own or not.
        group = dist.new_group(list(range(first, first + ranks)), timeout=timedelta(seconds=timeout_s))
        if first <= dist.get_rank() < first + ranks:
            language.sequence_group = group.group_name
            _groups[group.group_name] = group
    AttentionInterface.register(name + SHARED, partial(_attend, ALL_ATTENTION_FUNCTIONS[name]))
    AttentionMaskInterface.register(name + SHARED, ALL_MASK_ATTENTION_FUNCTIONS[name])
    language.set_attn_implementation(name + SHARED)


def read_features(own_FKE: Tensor, share: "Share", group: str) -> Tensor:
    """Returns the features of this rank's slice (W, K, E) from whoever has the images; collective in the group.

    Args:
        own_FKE: Features of this rank's images, in the order of their tokens.
        share: How many go where.
        group: Name of the ranks' group.
    """
    return _exchange(own_FKE, share.sends, share.receives, group).index_select(0, share.order)


def _attend(
    kernel: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_group: str | None = None,
    sequence_size: int = 1,
    sequence_rows: int = 1,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: (1, H, L, D) and (1, G, L, D) in, (1, L, H, D) out.

    Args:
        kernel: Attention of all tokens.
        module: The attention layer.
        query: Of this rank's slice, rotated.
        key: The same.
        value: Of the same heads as the keys.
        attention_mask: Of the whole rows.
        sequence_group: Name of the group; without one everything is here, and the kernel runs as it is.
        sequence_size: P.
        sequence_rows: B, for a kernel with rows of their own; 1 for one that is told where samples begin.
        kwargs: For the kernel.
    """
    if sequence_group is None:
        return kernel(module, query, key, value, attention_mask, **kwargs)
    heads = to_heads(query, key, value, sequence_group, sequence_size)
    rows = (part.unflatten(1, (sequence_rows, -1)).squeeze(0).transpose(1, 2) for part in heads)
    out_BSHD, _ = kernel(module, *rows, attention_mask, **kwargs)
    return to_slices(out_BSHD.flatten(0, 1), sequence_group, sequence_size), None


def to_heads(query: Tensor, key: Tensor, value: Tensor, group: str, ranks: int) -> list[Tensor]:
    """Returns queries (1, T, H / P, D), keys and values (1, T, max(G / P, 1), D) of all slices; see `_attend`.

    In the type of the products: a normalisation with float32 weights would double what is sent.
    """
    kind = value.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    if key.shape[1] % ranks:
        key, value = (part.repeat_interleave(ranks // part.shape[1], dim=1) for part in (key, value))
    parts = [part.to(dtype).squeeze(0).transpose(0, 1).unflatten(1, (ranks, -1)) for part in (query, key, value)]
    sent_PLHD = torch.cat([part_LPHD.transpose(0, 1) for part_LPHD in parts], dim=2)
    received_PLHD = _exchange(sent_PLHD, [1] * ranks, [1] * ranks, group)
    return list(received_PLHD.flatten(0, 1).unsqueeze(0).split([part.shape[2] for part in parts], dim=2))


def to_slices(out_THD: Tensor, group: str, ranks: int) -> Tensor:
    """Returns (1, L, H, D), all heads of this rank's slice, from all slices of its heads (T, H / P, D)."""
    received_PLHD = _exchange(out_THD.unflatten(0, (ranks, -1)), [1] * ranks, [1] * ranks, group)
    return received_PLHD.transpose(0, 1).flatten(1, 2).unsqueeze(0)


@torch.library.custom_op("harness::exchange", mutates_args=())
def _exchange(sent: Tensor, sends: list[int], receives: list[int], group: str) -> Tensor:
    """Returns what all ranks send to this one, by sender: `sent` goes out in parts of so many rows, by receiver."""
    received = sent.new_empty((sum(receives), *sent.shape[1:]))
    dist.all_to_all_single(received, sent.contiguous(), receives, sends, group=_groups[group])
    return received


@_exchange.register_fake
def _exchange_shapes(sent: Tensor, sends: list[int], receives: list[int], group: str) -> Tensor:
    return sent.new_empty((sum(receives), *sent.shape[1:]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.sends, ctx.receives, ctx.group = inputs


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _exchange(grad, ctx.receives, ctx.sends, ctx.group), None, None, None


_exchange.register_autograd(_differentiate, setup_context=_save)
