"""Averages gradients over ranks after the backward pass, once all ranks have said that theirs is through."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.trainer.host_group import HostGroup

BUCKET = 2**24
"""Values that are sent at a time: a copy of so many is there for a moment."""


class Reduction:
    """What DDP does within a backward pass, at a time when it is known that no rank is missing."""

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: HostGroup) -> None:
        """Args: what trains, in the same order on every rank, and the ranks."""
        self._parameters = parameters
        self._ranks = ranks
        self._has_P: list[bool] = []

    def agree(self, failed: bool) -> bool:
        """Returns whether this rank or another failed, and learns which parameters have a gradient on some rank."""
        told = torch.tensor([failed, *(p.grad is not None for p in self._parameters)], dtype=torch.uint8)
        self._ranks.reduce(told, dist.ReduceOp.MAX)
        any_failed, *self._has_P = told.bool().tolist()
        return any_failed

    def average(self) -> None:
        """Averages gradients in place; a rank without one of them gets the others' over the number of all."""
        pairs = zip(self._parameters, self._has_P, strict=True)
        gradients = []
        for parameter in (p for p, has in pairs if has):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        average(gradients)


def average(gradients: Sequence[Tensor]) -> None:
    """Averages gradients over the ranks in place, in few sums.

    Args:
        gradients: Of any shapes and types; on every rank of the same parameters in the same order.
    """
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        means = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [mean.view_as(own) for mean, own in zip(means, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields gradients of one type in groups; the first of a group may by itself be larger than a bucket."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > BUCKET
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
