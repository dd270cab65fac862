"""AdaLoRA's part in training: ranks dealt out after each step, the orthogonality term, and what a resume needs of it.

Shapes: N matrices of one shape, R rank, D inputs or outputs.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from harness.tuner.tuned import Tuned

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""PEFT's names for importance, its average and the average of its deviation, by parameter."""
_ADAPTER = "default"


def attach(tuned: Tuned, model: PeftModel, orth_reg_weight: float, device: torch.device) -> None:
    """Lets the run drive the allocation.

    Args:
        tuned: What gets the hooks, changed in place.
        model: Its model, wrapped with AdaLoRA.
        orth_reg_weight: Weight of the orthogonality term; 0 for none.
        device: Where the model will train: averages are loaded there, ahead of it.
    """
    tuner: Any = model.base_model
    settings: Any = model.peft_config[_ADAPTER]
    allocator = tuner.rankallocator

    def state() -> dict[str, Any]:
        return {"rank_pattern": settings.rank_pattern or {}} | {key: getattr(allocator, key) for key in _AVERAGES}

    def load_state(saved: dict[str, Any]) -> None:
        settings.rank_pattern = saved["rank_pattern"] or None
        for key in _AVERAGES:
            setattr(allocator, key, {name: value.to(device) for name, value in saved[key].items()})

    tuned.after_step = tuner.update_and_allocate
    tuned.state, tuned.load_state = state, load_state
    tuned.export = _exporter(model, tuned.export)
    if orth_reg_weight:
        tuned.regularizer = lambda: orth_reg_weight * orthogonality(model)


def orthogonality(model: PeftModel) -> Tensor:
    """Returns the mean over all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F, in float32 (scalar).

    One product for all matrices of a shape: a model has hundreds of them, and few shapes.
    """
    factors: dict[torch.Size, list[Tensor]] = defaultdict(list)
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if hasattr(layer, "lora_E") and _ADAPTER in layer.lora_E:
            for factor_RD in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER].T):
                factors[factor_RD.shape].append(factor_RD.float())
    total, number = torch.zeros((), device=next(model.parameters()).device), 0
    with torch.autocast(total.device.type, enabled=False):
        for group in factors.values():
            factor_NRD = torch.stack(group)
            gram_NRR = factor_NRD @ factor_NRD.mT
            identity_RR = torch.eye(gram_NRR.shape[-1], device=gram_NRR.device)
            total = total + torch.linalg.matrix_norm(gram_NRR - identity_RR).sum()
            number += len(group)
    return total / number


def _exporter(model: PeftModel, plain: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Returns an export whose rank pattern is that of the weights themselves.

    The allocator's may be another one: entries grow back between two allocations, and the weights may be those of an
    earlier checkpoint. PEFT drops what the pattern masks.
    """

    def export(folder: Path) -> Path:
        settings: Any = model.peft_config[_ADAPTER]
        if settings.rank_pattern:
            inner: Any = model.base_model.model
            values = {name: value for name, value in inner.named_parameters() if f"lora_E.{_ADAPTER}" in name}
            settings.rank_pattern = {name: (value != 0).view(-1).tolist() for name, value in values.items()}
        with warnings.catch_warnings():
            # A matrix that got no rank at all is no sign of weights that were not gathered.
            warnings.filterwarnings("ignore", message=".*LoRA tensor\\(s\\) have invalid shape")
            return plain(folder)

    return export
