"""Full fine-tuning of the components that the freeze policy leaves free."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.registry import register

if TYPE_CHECKING:
    from harness.model.component import Component
    from harness.model.loading import Loaded
    from harness.tuner.tuned import Tuned

DEFAULT_LR = 1e-5
"""Default learning rate of full fine-tuning in ms-swift 4.6."""


@dataclass(kw_only=True, slots=True)
class FullConfig:
    """Trains the weights themselves. What stays frozen is the freeze policy's matter."""

    name: str = "full"


@register("tuner", FullConfig)
def build(config: FullConfig, loaded: "Loaded", trainable: "frozenset[Component]") -> "Tuned":
    """Marks every parameter of the trainable components; tied weights belong to the LLM.

    Args:
        config: Has no options of its own.
        loaded: The frozen base model.
        trainable: Components that train.
    """
    from harness.model.component import component_of
    from harness.tuner.tuned import Tuned

    model = loaded.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(component_of(name) in trainable)

    def export(folder: Path) -> Path:
        model.save_pretrained(folder / "model")
        return folder / "model"

    return Tuned(model, model, export, DEFAULT_LR)
