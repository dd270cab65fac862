"""Full fine-tuning of the components that the freeze policy leaves free."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.registry import register
from harness.tuner.trained_dtype import TrainedDtype

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned

DEFAULT_LR = 1e-5
"""Default learning rate of full fine-tuning in ms-swift 4.6."""


@dataclass(kw_only=True, slots=True)
class FullConfig:
    """Trains the weights themselves. What stays frozen is the freeze policy's matter."""

    is_full: ClassVar[bool] = True
    """Trains the weights themselves, which some optimisers ask for."""
    exports_model: ClassVar[bool] = True
    """Writes the whole model, frozen weights included."""
    name: str = "full"
    dtype: TrainedDtype = TrainedDtype.float32
    """Storage type of trained weights. bfloat16 halves their memory and rounds most updates at usual rates away."""


@register("tuner", FullConfig)
def build(config: FullConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Marks every parameter of the trainable components; tied weights belong to the LLM.

    The export is in the type of the base weights, whatever the trained ones were held in.

    Args:
        config: The trained weights' type.
        loaded: The frozen base model.
        policy: What trains.
        outlook: Not looked at.
    """
    import torch

    from harness.tuner.tuned import Tuned

    model = loaded.model
    base_dtype = model.dtype
    for name, parameter in model.named_parameters():
        if name in policy.free:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(getattr(torch, config.dtype.name))

    def export(folder: Path) -> Path:
        model.to(base_dtype)  # type: ignore[arg-type]
        model.save_pretrained(folder / "model")
        return folder / "model"

    return Tuned(model, model, export, DEFAULT_LR)
