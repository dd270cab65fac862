"""What all methods of PEFT share: where they go, what trains beside them, their dtype, and export in PEFT's format."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from harness.errors import reject
from harness.freeze.policy import Policy
from harness.model.component import stacked_experts, strip_peft
from harness.model.loading import Loaded
from harness.tuner.beside import EMBEDDING, is_tied, modules_beside
from harness.tuner.target import LINEAR, Kind, target_regex
from harness.tuner.targeted import TargetedConfig
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

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
        UserError: A target or a module to save matches nothing or only what is frozen, or the method can not train
            tied weights.
    """
    base = loaded.model
    beside = modules_beside(base, config.modules_to_save, policy)
    if beside:
        options |= {"modules_to_save": beside, **_tying(base, beside, kind)}
    settings = kind(target_modules=target_regex(base, config, policy, into), **options)  # type: ignore[call-arg]
    if (experts := policy.free.intersection(stacked_experts(base))) and base.device.type != "meta":
        log.warning("tuner: experts get no adapter: %s is no linear layer", min(experts))
    known = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    buffers = set(base.buffers())
    with few_threads(base):
        model = get_peft_model(base, settings, autocast_adapter_dtype=False)
        adapter = frozenset(name for name, _ in model.named_parameters() if base_name(name) not in known)
        for name, parameter in model.named_parameters():
            # PEFT knows nothing of the freeze policy: it frees all biases, and all of a copy.
            if name not in adapter and base_name(name) not in policy.free:
                parameter.requires_grad_(False)
            elif (name in adapter or ".modules_to_save." in name) and parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, config.dtype.name))
        for buffer in model.buffers():
            # A method's fixed matrices, which PEFT makes in the base's type, meet its weights in products.
            if buffer not in buffers and buffer.is_floating_point():
                buffer.data = buffer.data.to(getattr(torch, config.dtype.name))
    return Tuned(model, base, _exporter(model), DEFAULT_LR, adapter)


@contextmanager
def few_threads(model: nn.Module) -> Iterator[None]:
    """Lets torch use at most eight cores, for many small tensors made on the host, where the model is on a GPU.

    PEFT makes each matrix on the host, and sharing one out over all cores takes longer than filling it: LoRA
    of rank 16 for 4B took 4.1 s with 64 threads and 0.5 s with eight. A model on the CPU keeps them, for starts that
    decompose its weights there.
    """
    if next(model.parameters()).device.type == "cpu":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 8))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def base_name(name: str) -> str:
    """Returns the name that a parameter of a wrapped model has in the base model, where it is one of its."""
    bare = strip_peft(name).replace(".base_layer", "").replace(".original_module", "")
    return bare.replace(".modules_to_save.default", "")


def count_biases(model: nn.Module) -> int:
    """Returns how many biases of the base model train."""
    return sum(p.requires_grad and name.endswith(".bias") for name, p in model.named_parameters())


def _tying(base: nn.Module, beside: Sequence[str], kind: type[PeftConfig]) -> dict[str, Any]:
    """Returns the option that keeps the copies of a tied embedding and head one."""
    if EMBEDDING not in beside or not is_tied(base):
        return {}
    if "ensure_weight_tying" not in {field.name for field in dataclasses.fields(kind)}:
        remedy = f"is tied to lm_head, and PEFT keeps the two one for LoRA, not for {kind.__name__}; leave it out"
        raise reject("tuner.modules_to_save (or freeze.full)", EMBEDDING, remedy)
    return {"ensure_weight_tying": True}


def _exporter(model: PeftModel) -> Any:
    def export(folder: Path) -> Path:
        model.save_pretrained(str(folder / "adapter"))
        return folder / "adapter"

    return export
