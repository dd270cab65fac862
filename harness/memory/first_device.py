"""Where weights are read to: where the model will train, or the host if they are quantised on their way there."""

import torch

from harness.memory.config import MemoryConfig


def first_device(config: MemoryConfig, device: torch.device) -> torch.device:
    """Returns where the model is loaded.

    Args:
        config: The run's.
        device: Where the model will train.
    """
    return torch.device("cpu") if config.quant.changes_base else device
