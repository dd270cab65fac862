"""What LoRA and its relatives share: wrapping with PEFT, the adapter's dtype, and an export that loads anywhere."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from harness.errors import reject
from harness.freeze.policy import Policy
from harness.model.component import strip_peft
from harness.model.loading import Loaded
from harness.tuner.target import target_regex
from harness.tuner.tuned import Tuned

DEFAULT_LR = 1e-4
"""Default learning rate of adapters in ms-swift 4.6."""
_CHANGES_BASE = ("pissa", "olora")
"""Initialisations that take A B out of the base weights."""


def wrap(loaded: Loaded, policy: Policy, *, target_modules: Sequence[str], dtype: str, **options: Any) -> Tuned:
    """Wraps a base model with PEFT's LoRA.

    Args:
        loaded: The frozen base model, changed in place.
        policy: Where adapters may go.
        target_modules: As in `target_regex`.
        dtype: Name of the adapters' storage type.
        options: Fields of `peft.LoraConfig`.

    Raises:
        UserError: A target matches nothing, or there are no biases to train.
    """
    base = loaded.model
    regex = target_regex(base, target_modules, policy)
    model = get_peft_model(base, LoraConfig(target_modules=regex, **options), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(getattr(torch, dtype))
        elif strip_peft(name).replace(".base_layer", "") not in policy.free:
            # PEFT's bias=all knows nothing of the freeze policy.
            parameter.requires_grad_(False)
    biases = [name for name, p in model.named_parameters() if p.requires_grad and name.endswith(".bias")]
    if options.get("bias", "none") != "none" and not biases:
        raise reject("tuner.bias", options["bias"], "what the freeze policy leaves free has no biases; use none")
    exporter = _Exporter(model, str(options.get("init_lora_weights", True)).startswith(_CHANGES_BASE))
    return Tuned(model, base, exporter.export, DEFAULT_LR)


class _Exporter:
    """Saves in PEFT's format, always as an adapter of the untouched base model.

    PiSSA and OLoRA changed the base in memory. Their result is saved as the difference to the start, a LoRA of twice
    the rank: [A | A0] and [B | -B0]. Saved plainly, it would load without a word and give a different model.
    """

    def __init__(self, model: PeftModel, changes_base: bool) -> None:
        self._model = model
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        self._start = {name: p.detach().clone() for name, p in trained} if changes_base else None

    def export(self, folder: Path) -> Path:
        target = folder / "adapter"
        if self._start is None:
            self._model.save_pretrained(str(target))
            return target
        with tempfile.TemporaryDirectory() as start, warnings.catch_warnings():
            # PEFT recommends the very conversion that happens here.
            warnings.filterwarnings("ignore", message=".*changes the base weights of the model")
            self._model.save_pretrained(start, state_dict=self._start)
            self._model.save_pretrained(str(target), path_initial_model_for_weight_conversion=start)
        return target
