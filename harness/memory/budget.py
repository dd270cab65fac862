"""A hard cap on what this process allocates on its GPU."""

import torch

from harness.errors import reject
from harness.memory.config import MemoryConfig


def set_budget(config: MemoryConfig, device: torch.device) -> None:
    """Caps torch's allocator at `memory.budget_gib`, where it is set; the CUDA context is not counted.

    Raises:
        UserError: The device is no GPU, or has less.
    """
    if config.budget_gib is None:
        return
    if device.type != "cuda":
        raise reject("memory.budget_gib", config.budget_gib, "caps the memory of a GPU; leave it null on the CPU")
    total_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    if config.budget_gib > total_gib:
        raise reject("memory.budget_gib", config.budget_gib, f"the GPU has {total_gib:.1f} GiB; null takes all")
    torch.cuda.set_per_process_memory_fraction(config.budget_gib / total_gib, device)
