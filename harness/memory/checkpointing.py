"""Activation checkpointing (Chen et al., arXiv 1604.06174): what a layer keeps for its backward pass, by policy.

none keeps what autograd saves. full keeps a layer's input and runs the layer again. selective keeps the input, the
results of attention and of the products that are dear for their size, and runs the rest again: norms, rotation,
activations, dropout, and products that widen. A product (T, D) x (D, E) costs D FLOP for each byte of a 16-bit result
whatever E is, but a wide result fills the memory that many layers need; so it is kept where E is at most `WIDEST` D.
In Qwen3-VL that keeps q, k, v, o and down, one by one or joined, and not gate and up: about 35 kB a token and layer of
4B, where none keeps 200 and full 5.

full stands around a layer, compiled or not (`harness/model/block.py`). selective stands inside its `forward`, where a
compiler's partitioner follows it; around a compiled layer it would see no single product and be full in silence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint as checkpoints
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from harness.errors import reject

if TYPE_CHECKING:
    from harness.memory.config import MemoryConfig

WIDEST = 2.5
"""Above q, k and v of 4B joined (2.4), below gate and up of any size (3)."""
_ATTENTION = (
    "harness::varlen_attention",
    "aten::_scaled_dot_product",
    "aten::_flash_attention_forward",
    "flash_attn",
)
"""How the names of kernels begin whose results are kept."""
_WORDS = "aten::randint"
"""The numbers that compiled dropout is made of (`harness.tuner.drop`): few, and torch 2.11 can not draw them again."""
_PRODUCTS = {
    "aten::mm": 1,
    "aten::addmm": 2,
    "aten::_scaled_mm": 1,
    "harness::bnb8_product": 1,
    "harness::eetq_product": 1,
}
"""Products of a (T, D) with a (D, E) matrix, and which argument is the matrix."""


def set_policies(config: "MemoryConfig", model: PreTrainedModel) -> None:
    """Makes the layers of both towers follow the config's policies, in place.

    Raises:
        UserError: More layers are asked for than there are, or the ViT keeps nothing that could be saved.
    """
    layers, blocks = model.model.language_model.layers, model.model.visual.blocks
    count = len(layers) if config.checkpointed_layers is None else config.checkpointed_layers
    if count > len(layers):
        raise reject("memory.checkpointed_layers", count, f"the LLM has {len(layers)} layers")
    # The first ones: their turn in the backward pass comes when the others have freed what they kept.
    for layer in layers[:count]:
        set_policy(layer, config.checkpointing)
    trains = vit_keeps(model)
    if config.vit_checkpointing not in (None, "none") and not trains:
        remedy = "has no effect: the ViT is frozen, and nothing of it is kept; leave it null"
        raise reject("memory.vit_checkpointing", config.vit_checkpointing, remedy)
    vit = config.checkpointing if config.vit_checkpointing is None else config.vit_checkpointing
    for block in blocks if trains else ():
        set_policy(block, vit)


def vit_keeps(model: PreTrainedModel) -> bool:
    """Returns whether gradients go through the ViT's blocks, so that it keeps activations."""
    visual: Any = model.model.visual
    return any(
        p.requires_grad for part in (visual.patch_embed, visual.pos_embed, visual.blocks) for p in part.parameters()
    )


def set_policy(layer: Any, policy: str) -> None:
    """Makes a layer follow a policy in training, in place and non-reentrant.

    Reentrant checkpointing loses the gradients of a block whose input needs none, which is every first block under
    adapters.

    Args:
        layer: Takes its hidden state as the first argument.
        policy: One of `POLICIES`.
    """
    if policy == "none":
        return
    if policy == "full":
        layer.recompute = partial(checkpoints.checkpoint, use_reentrant=False)
        return
    layer.uncheckpointed = layer.forward
    layer.forward = _selective(layer, layer.forward)


def checkpoint_all(model: PreTrainedModel) -> bool:
    """Makes every layer that keeps activations follow full, in place, whatever it followed.

    Returns:
        Whether one of them kept more before.
    """
    towers: Any = model.model
    blocks = [*towers.language_model.layers, *(towers.visual.blocks if vit_keeps(model) else ())]
    changed = [block for block in blocks if not hasattr(block, "recompute")]
    for block in changed:
        if (forward := block.__dict__.pop("uncheckpointed", None)) is not None:
            block.forward = forward
        set_policy(block, "full")
    return bool(changed)


def _selective(layer: nn.Module, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    contexts = partial(create_selective_checkpoint_contexts, keeps)

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not layer.training:
            return inner(hidden, *args, **kwargs)
        return checkpoints.checkpoint(partial(inner, **kwargs), hidden, *args, use_reentrant=False, context_fn=contexts)

    return forward


def is_product(width: int, operator: Any, *args: Any) -> bool:
    """Says whether an operator multiplies with a matrix, other than the second of a low-rank pair: its result is added
    to one of the same size.

    Args:
        width: Of the layer.
        operator: What runs.
        args: Its arguments.
    """
    name = operator.name().partition(".")[0] if isinstance(operator, torch._ops.OpOverload) else ""
    if (place := _PRODUCTS.get(name)) is None:
        return False
    inner, outer = args[place].shape
    return outer <= inner or is_large(width, args[place].shape)


def is_large(width: int, shape: Sequence[int]) -> bool:
    """Says whether a matrix is none of an adapter's."""
    return min(shape) >= width // 4


def keeps(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Says of one operator in a layer's forward pass whether selective keeps its result."""
    name = operator.name().partition(".")[0] if isinstance(operator, torch._ops.OpOverload) else ""
    if name.startswith(_ATTENTION) or name == _WORDS:
        return CheckpointPolicy.MUST_SAVE
    if (place := _PRODUCTS.get(name)) is not None:
        inner, outer = args[place].shape
        return CheckpointPolicy.MUST_SAVE if outer <= WIDEST * inner else CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.PREFER_RECOMPUTE
