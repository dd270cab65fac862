"""Export of an adapter and the model's own weights that trained beside it, as one checkpoint.

Weights of the model that train in place, tied ones among them, have no place in PEFT's format.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from harness.tuner.peft_adapter import base_name


def exporter(model: PeftModel, base: PreTrainedModel, dtype: torch.dtype) -> Callable[[Path], Path]:
    """Returns an export to `model/`, which transformers loads.

    Args:
        model: PEFT's wrapper, with an adapter that merges.
        base: The model inside.
        dtype: Type of the exported weights.
    """

    def export(folder: Path) -> Path:
        target = folder / "model"
        added = {name for name, _ in model.named_parameters() if ".lora_" in name or ".original_module." in name}
        model.merge_adapter()
        # Tied weights are here once, under their first name, and saved once.
        state = {
            base_name(name): parameter.detach().to(dtype)
            for name, parameter in model.named_parameters()
            if name not in added
        }
        base.save_pretrained(target, state_dict=state)
        model.unmerge_adapter()
        return target

    return export
