"""Which type matrix products run in, checked against the weights and the machine."""

from typing import Any

import torch
from transformers import PreTrainedModel

from harness.errors import reject
from harness.memory.config import MemoryConfig, Precision
from harness.trainer.standard import StandardConfig as TrainerConfig
from harness.trainer.standard import pick_accelerator

_FOLLOWS = {torch.float32: Precision.fp32, torch.bfloat16: Precision.bf16, torch.float16: Precision.fp16}


def checked_precision(config: MemoryConfig, model: PreTrainedModel, trainer: TrainerConfig) -> str:
    """Returns bf16, fp16 or fp32: by default the type in which weights are frozen, or, where all train, were loaded.

    Args:
        config: The memory config.
        model: The model, tuned.
        trainer: For the device.

    Raises:
        UserError: The type does not fit the weights, or the device has no use of it.
    """
    # Of 8 bits only storage is: see memory=fp8_base.
    wide = [parameter for parameter in model.parameters() if parameter.dtype.itemsize > 1]
    types = {parameter.dtype for parameter in wide}
    loaded: Any = model.config.dtype
    frozen = {parameter.dtype for parameter in wide if not parameter.requires_grad} or {loaded}
    lowest = min(frozen, key=lambda dtype: dtype.itemsize)
    precision = _FOLLOWS[lowest] if config.precision is Precision.auto else config.precision
    if precision is Precision.fp32 and types | {lowest} != {torch.float32}:
        raise reject("memory.precision", "fp32", f"the weights are {lowest}; set model.dtype=float32 or use auto")
    if precision is Precision.fp16:
        if pick_accelerator(trainer) == "cpu":
            raise reject("memory.precision", "fp16", "needs a GPU; use bf16 or fp32 on the CPU")
        if any(p.requires_grad and p.dtype != torch.float32 for p in model.parameters()):
            raise reject("memory.precision", "fp16", "a gradient scaler needs trained weights in float32: tuner.dtype")
    return precision.name
