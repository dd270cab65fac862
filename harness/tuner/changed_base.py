"""Export of adapters whose start took A B out of the base weights: as an adapter of the untouched base model.

Their result is saved as the difference to the start, a LoRA of twice the rank: [A | A0] and [B | -B0]. Saved plainly,
it would load without a word and give a different model. PEFT has this conversion too, but not for rslora together with
patterns of rank or alpha, and not beside trained biases.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from harness.tuner.start.factors import Start


def exporter(model: PeftModel, start: Start) -> Callable[[Path], Path]:
    """Returns an export that saves the difference to a start.

    Args:
        model: The wrapped model.
        start: A and B of each layer as they were taken out of the base.
    """

    def export(folder: Path) -> Path:
        state = model.state_dict()
        for name, factors in start.items():
            of_A = f"base_model.model.{name}.lora_A.default.weight"
            of_B = f"base_model.model.{name}.lora_B.default.weight"
            state[of_A] = torch.cat([state[of_A], factors.A_RD.to(state[of_A])], dim=0)
            state[of_B] = torch.cat([state[of_B], -factors.B_ER.to(state[of_B])], dim=1)
        own = model.peft_config["default"]
        assert isinstance(own, LoraConfig)
        model.peft_config["default"] = _twice(own)
        try:
            model.save_pretrained(str(folder / "adapter"), state_dict=state)
        finally:
            model.peft_config["default"] = own
        return folder / "adapter"

    return export


def _twice(config: LoraConfig) -> LoraConfig:
    """Returns the config of an adapter of twice the rank at the same scale."""
    twice, grown = copy.deepcopy(config), 2**0.5 if config.use_rslora else 2
    twice.r = 2 * config.r
    twice.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    twice.lora_alpha = config.lora_alpha * grown  # type: ignore[assignment]
    twice.alpha_pattern = {name: alpha * grown for name, alpha in (config.alpha_pattern or {}).items()}
    return twice
