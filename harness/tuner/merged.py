"""Export of a LoRA together with its base: the whole model, merged, as a checkpoint that transformers loads.

For bases that no longer are those of the checkpoint, so that an adapter alone would load and give a different model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from harness.tuner.peft_adapter import base_name
from harness.tuner.tuned import Tuned


def exporter(tuned: Tuned) -> Callable[[Path], Path]:
    """Returns an export of the merged weights, in the type of the base's; the model stays as it is."""
    model, dtype = tuned.model, tuned.base.dtype
    assert isinstance(model, PeftModel)

    def export(folder: Path) -> Path:
        own = {name: value for name, value in model.state_dict().items() if name not in tuned.adapter}
        state = {base_name(name): value.to(dtype) for name, value in own.items() if ".original_module." not in name}
        layers: list[tuple[str, Any]] = [item for item in model.named_modules() if isinstance(item[1], LoraLayer)]
        for name, layer in layers:
            weight = layer.get_base_layer().weight
            merged = weight.float() + layer.get_delta_weight("default").float()
            state[base_name(f"{name}.weight")] = merged.to(dtype)
        tuned.base.save_pretrained(folder / "model", state_dict=state)
        return folder / "model"

    return export
