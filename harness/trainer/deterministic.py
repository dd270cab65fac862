"""Makes a run repeatable bit by bit: torch's deterministic kernels (`torch.use_deterministic_algorithms`)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Lets torch use only what gives the same bits each time, where that is wanted; what it has nothing for raises.

    Begin before the first product on a GPU: cuBLAS reads then how much memory of its own it has, without which it may
    add in any order.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
