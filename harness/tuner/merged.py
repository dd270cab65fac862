"""Export of a LoRA together with its base: the whole model, merged, as a checkpoint that transformers loads.

For bases that no longer are those of the checkpoint, so that an adapter alone would load and give a different model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from harness.tuner.peft_adapter import base_name


def exporter(model: PeftModel, base: PreTrainedModel, dtype: torch.dtype) -> Callable[[Path], Path]:
    """Returns an export to `model/`; the model in memory stays as it is, to the bit.

    Args:
        model: PEFT's wrapper, with a LoRA.
        base: The model inside.
        dtype: Type of the exported weights.
    """

    def export(folder: Path) -> Path:
        added = (".lora_", ".original_module.")
        own = {name: value for name, value in model.state_dict().items() if not any(part in name for part in added)}
        state = {base_name(name): value.to(dtype) for name, value in own.items()}
        layers: list[tuple[str, Any]] = [item for item in model.named_modules() if isinstance(item[1], LoraLayer)]
        for name, layer in layers:
            merged = layer.get_base_layer().weight.float() + layer.get_delta_weight("default").float()
            state[base_name(f"{name}.weight")] = merged.to(dtype)
        base.save_pretrained(folder / "model", state_dict=state)
        return folder / "model"

    return export
