"""Compute precision, and which activations are kept, the LLM and the ViT apart; the weights stay as they are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.memory.config import MemoryConfig, Precision
from harness.registry import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Precision", "StandardConfig", "build"]


@dataclass(kw_only=True, slots=True)
class StandardConfig(MemoryConfig):
    """Memory against time."""

    name: str = "standard"


@register("memory", StandardConfig)
def build(config: StandardConfig, model: "PreTrainedModel", device: "torch.device | None" = None) -> None:
    """Sets the policies in the model, in place; call it before layers are compiled.

    Args:
        config: The settings, auto resolved.
        model: The base model, with any adapter already in its modules.
        device: Where the model will train; None: where it is.
    """
    from harness.memory.budget import set_budget
    from harness.memory.checkpointing import set_policies
    from harness.memory.offload import set_offload

    device = device or model.device
    set_budget(config, device)
    set_policies(config, model)
    set_offload(config, model, device)
