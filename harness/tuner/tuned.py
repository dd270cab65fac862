"""What every tuner's builder returns: a model with its trainable parameters marked, and how to export it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
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
    adapter: frozenset[str] = frozenset()
    """Names in `model` of the parameters that the method added to the base model."""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """Factor on the learning rate of a parameter's component, by name in `model`; 1 where absent."""
    regularizer: Callable[[], Tensor] | None = None
    """Returns what is added to the loss of an optimiser step (scalar)."""
    after_step: Callable[[int], None] | None = None
    """Called with the number of the optimiser step just done, from 1, while its gradients are still there. The tuner's
    config says so by `reads_gradients`, for strategies and optimisers that leave none."""
    state: Callable[[], dict[str, Any]] | None = None
    """Returns what the method knows beside its weights, for a checkpoint: tensors, numbers, lists and dicts."""
    load_state: Callable[[dict[str, Any]], None] | None = None
    """Takes what `state` returned in a run that this one goes on with, before weights are loaded."""
