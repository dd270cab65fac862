"""What every tuner's builder returns: a model with its trainable parameters marked, and how to export it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel


@dataclass(slots=True)
class Tuned:
    """A model ready to train. Parameters with `requires_grad` are those that the tuner trains."""

    model: nn.Module
    """What trains and is saved: PEFT's wrapper, or the base model itself."""
    base: PreTrainedModel
    """The Qwen3-VL inside, with any adapter already in its modules."""
    export: Callable[[Path], Path]
    """Writes the result below a run folder, `adapter/` or `model/`, and returns that folder."""
    default_lr: float
    """Learning rate where `optim.lr` is null."""
