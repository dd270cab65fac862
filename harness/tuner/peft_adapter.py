"""What all methods of PEFT share: where they go, what trains beside them, their dtype, and export in PEFT's format."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from harness.freeze.policy import Policy
from harness.model.component import strip_peft
from harness.model.loading import Loaded
from harness.tuner.beside import modules_beside
from harness.tuner.target import LINEAR, Kind, target_regex
from harness.tuner.targeted import TargetedConfig
from harness.tuner.tuned import Tuned

DEFAULT_LR = 1e-4
"""Default learning rate of adapters in ms-swift 4.6."""


def wrap(
    loaded: Loaded,
    policy: Policy,
    config: TargetedConfig,
    kind: type[PeftConfig],
    into: Kind = LINEAR,
    **options: Any,
) -> Tuned:
    """Wraps a base model with a method of PEFT.

    Args:
        loaded: The frozen base model, changed in place.
        policy: Where adapters may go, and what trains in full beside them.
        config: Targets and dtype.
        kind: The method's config class.
        into: What the method goes into.
        options: Its fields, but for targets and modules to save.

    Raises:
        UserError: A target or a module to save matches nothing or only what is frozen.
    """
    base = loaded.model
    beside = modules_beside(base, config.modules_to_save, policy)
    if beside:
        options["modules_to_save"] = beside
    settings = kind(target_modules=target_regex(base, config, policy, into), **options)  # type: ignore[call-arg]
    known = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    buffers = set(base.buffers())
    model = get_peft_model(base, settings, autocast_adapter_dtype=False)
    adapter = frozenset(name for name, _ in model.named_parameters() if base_name(name) not in known)
    for name, parameter in model.named_parameters():
        if name in adapter or ".modules_to_save." in name:
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, config.dtype.name))
        elif base_name(name) not in policy.free:
            # PEFT's bias=all knows nothing of the freeze policy.
            parameter.requires_grad_(False)
    for buffer in model.buffers():
        # A method's fixed matrices, which PEFT makes in the base's type, meet its weights in products.
        if buffer not in buffers and buffer.is_floating_point():
            buffer.data = buffer.data.to(getattr(torch, config.dtype.name))
    return Tuned(model, base, _exporter(model), DEFAULT_LR, adapter)


def base_name(name: str) -> str:
    """Returns the name that a parameter of a wrapped model has in the base model, where it is one of its."""
    bare = strip_peft(name).replace(".base_layer", "").replace(".original_module", "")
    return bare.replace(".modules_to_save.default", "")


def count_biases(model: nn.Module) -> int:
    """Returns how many biases of the base model train."""
    return sum(p.requires_grad and name.endswith(".bias") for name, p in model.named_parameters())


def _exporter(model: PeftModel) -> Any:
    def export(folder: Path) -> Path:
        model.save_pretrained(str(folder / "adapter"))
        return folder / "adapter"

    return export
