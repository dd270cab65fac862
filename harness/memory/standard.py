"""Compute precision and activation checkpointing, the LLM and the ViT apart."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from harness.registry import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Precision(Enum):
    """Type in which matrix products run."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


@dataclass(kw_only=True, slots=True)
class StandardConfig:
    """Memory against time."""

    name: str = "standard"
    precision: Precision = Precision.auto
    """Compute type. auto follows the base weights; bf16 or fp16 over float32 weights is mixed precision."""
    checkpointing: bool = False
    """Recompute the LLM's activations in the backward pass: less memory, about a third more time."""
    vit_checkpointing: bool | None = None
    """The same for the ViT; null follows `checkpointing`."""


@register("memory", StandardConfig)
def build(config: StandardConfig, model: "PreTrainedModel") -> None:
    """Switches checkpointing on in the model, in place and non-reentrant.

    Reentrant checkpointing loses the gradients of a block whose input needs none, which is every first block under
    adapters.
    """
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    vit = config.checkpointing if config.vit_checkpointing is None else config.vit_checkpointing
    towers = ((model.model.language_model.layers, config.checkpointing), (model.model.visual.blocks, vit))
    for block in (block for blocks, enabled in towers if enabled for block in blocks):
        block.recompute = partial(checkpoint, use_reentrant=False)
