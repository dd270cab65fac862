"""Exchanges of a few numbers among ranks that wait for no GPU.

A sum over NCCL that the host reads waits until the device is through with all that was queued, and what comes next is
queued to an idle GPU. Over gloo ranks wait for each other's hosts alone.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class HostGroup:
    """All ranks of the run, over gloo; one process needs none."""

    def __init__(self, size: int) -> None:
        """Args: number of ranks. Collective where there are several: may make a group of processes."""
        self.size = size
        self._group = dist.new_group(backend="gloo") if size > 1 and dist.get_backend() != "gloo" else None

    def reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        """Adds values of the host up over several ranks, or takes another operation's result, in place."""
        dist.all_reduce(values, operation, group=self._group)

    def sums(self, *counts: int) -> list[int]:
        """Returns counts added up over ranks."""
        if self.size == 1:
            return list(counts)
        totals = torch.tensor(counts)
        self.reduce(totals)
        return totals.tolist()

    def means(self, values: Sequence[float]) -> list[float]:
        """Returns the averages over ranks."""
        if self.size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64)
        self.reduce(totals)
        return (totals / self.size).tolist()
