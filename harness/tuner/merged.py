"""Export of a LoRA together with the model's other weights: all of it, merged, as a checkpoint that transformers loads.

For bases that no longer are those of the checkpoint, and for weights of the model that train in place: an adapter in
PEFT's format would load without them, in silence.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from harness.tuner.peft_adapter import base_name
from harness.tuner.tuned import Tuned


def exporter(tuned: Tuned, dtype: torch.dtype) -> Callable[[Path], Path]:
    """Returns an export of the merged weights; the model stays as it is.

    Args:
        tuned: A model with LoRA in it.
        dtype: Type of the exported weights.
    """
    model = tuned.model
    assert isinstance(model, PeftModel)

    def export(folder: Path) -> Path:
        # Tied weights are here once, under their first name, and saved once.
        own = {name: value.detach() for name, value in model.named_parameters() if name not in tuned.adapter}
        state = {base_name(name): value.to(dtype) for name, value in own.items() if ".original_module." not in name}
        layers: list[tuple[str, Any]] = [item for item in model.named_modules() if isinstance(item[1], LoraLayer)]
        for name, layer in layers:
            weight = layer.get_base_layer().weight
            merged = weight.float() + layer.get_delta_weight("default").float()
            # On the host: a GPU may have no room for a second model.
            state[base_name(f"{name}.weight")] = merged.detach().to(dtype).cpu()
        tuned.base.save_pretrained(folder / "model", state_dict=state)
        return folder / "model"

    return export
