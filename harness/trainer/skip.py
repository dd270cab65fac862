"""Leaves out the update of a step whose loss or gradient is no finite number, alike on all ranks.

Weights and optimiser state stay as they are, and with them what the optimiser counts; the step counts for the schedule
and for the data, whose positions are the number of the step, so a resumed run finds its place.

torch's fused AdamW leaves a step out on the device, when it is told there (`found_inf`, which it has for gradient
scalers): the host learns of it when it reads the losses of the log interval. Any other optimiser has to be kept from
its step on the host, which then waits for the GPU once in each step; on the CPU there is nothing to wait for.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Skipped(Exception):
    """Raised between backward pass and update: the update is left out."""


def leave_out_nonfinite(optimizer: Optimizer, loss: Tensor, norm: Tensor, world_size: int, *, on_device: bool) -> None:
    """Lets an optimiser skip its coming update if a loss or norm is not finite on some rank.

    Args:
        optimizer: Whose update is next.
        loss: The step's on this rank (scalar).
        norm: Of the gradients, equal on all ranks (scalar).
        world_size: Ranks, which all call this.
        on_device: Whether nothing else depends on the decision, so that the device may take it; see `skips_on_device`.

    Raises:
        Skipped: It is not finite, and the host has to act on it.
    """
    bad = (~torch.isfinite(loss + norm)).float()
    if world_size > 1:
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
    if on_device:
        told: Any = optimizer
        told.found_inf = bad
    elif bad.item():
        raise Skipped


def skips_on_device(optimizer: Optimizer) -> bool:
    """Says whether an optimiser is one that looks at `found_inf`: AdamW itself, with the fused kernel."""
    return type(optimizer) is torch.optim.AdamW and all(group["fused"] for group in optimizer.param_groups)
