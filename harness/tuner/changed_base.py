"""Export of adapters whose start took A B out of the base weights: as an adapter of the untouched base model.

Their result is saved as the difference to the start, a LoRA of twice the rank: [A | A0] and [B | -B0]. Saved plainly,
it would load without a word and give a different model.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel


def exporter(model: PeftModel) -> Callable[[Path], Path]:
    """Returns an export that saves the difference to the adapter as it is now; call it before training."""
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def export(folder: Path) -> Path:
        target = folder / "adapter"
        with tempfile.TemporaryDirectory() as before, warnings.catch_warnings():
            # PEFT recommends the very conversion that happens here.
            warnings.filterwarnings("ignore", message=".*changes the base weights of the model")
            model.save_pretrained(before, state_dict=start)
            model.save_pretrained(str(target), path_initial_model_for_weight_conversion=before)
        return target

    return export
