"""Gathers weights with a GPU's copy engines, which take no multiprocessors from what computes.

NCCL leaves an all-gather to them where no sum is needed, all ranks are on one node, the memory is registered with all
of them, and NCCL_CTA_POLICY=2 (NCCL_CTA_POLICY_ZERO) was in the environment at its first communicator. Elsewhere it
takes kernels, without a word.
"""

import math
import os
import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import _symmetric_memory as symmetric_memory
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

from harness.errors import reject

KEY = "memory.strategy.copy_engines"
POLICY = "NCCL_CTA_POLICY"
BUFFERS = 3
"""Gathered layers of one size at most: what computes, what was asked for ahead, and what has just been let go of."""


def ask_nccl(sharing: int, on_a_node: int) -> None:
    """Sets the policy, before NCCL has a communicator: it reads the variable once in a process.

    Args:
        sharing: Processes that share a copy of the model.
        on_a_node: Processes of each node.

    Raises:
        UserError: NCCL would take kernels all the same, or two ranks could wait for each other for ever.
    """
    if on_a_node % sharing:
        remedy = "are those of one node; give memory.strategy.shard_size a divisor of its processes, or set false"
        raise reject(KEY, "true", f"copy engines {remedy}")
    version = torch.cuda.nccl.version()
    if version < (2, 28):
        raise reject(KEY, "true", f"takes NCCL 2.28 or newer, and torch has {'.'.join(map(str, version))}; set false")
    if sharing == 2 and version < (2, 31, 2) and os.environ.get("NCCL_NVLS_ENABLE") != "0":
        # github.com/NVIDIA/nccl/pull/2290
        remedy = "two processes may wait for ever with NVLink's multicast before NCCL 2.31.2; export NCCL_NVLS_ENABLE=0"
        raise reject(KEY, "true", remedy)
    for one, other in combinations(range(torch.cuda.device_count()), 2):
        if not (torch.cuda.can_device_access_peer(one, other) and torch.cuda.can_device_access_peer(other, one)):
            raise reject(KEY, "true", f"GPUs {one} and {other} do not reach each other's memory; set false")
    if os.environ.setdefault(POLICY, "2") != "2":
        raise reject(KEY, "true", f"{POLICY}={os.environ[POLICY]} is set for another policy; unset it, or set false")


class CopyEngineAllGather(DefaultAllGather):
    """FSDP2's all-gather into memory that every rank of a group can write to.

    Each size has buffers that are handed out in turn, so that the n-th gather of all ranks is into the same one: NCCL
    writes to the peers' by the place of its own, and a caching allocator may choose otherwise on each rank
    (github.com/pytorch/pytorch/issues/190977). FSDP2 lets go of one only after its streams have waited for the copy out
    of it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Readies such memory.

        Args:
            group: Of the processes that share a copy of the model, on NCCL.
        """
        super().__init__()
        # By size: buffers and what was handed out of them, the longest lent one first.
        self._rings: dict[int, deque[tuple[Tensor, weakref.ref[Tensor]]]] = defaultdict(deque)
        symmetric_memory.set_backend("NCCL")
        # It needs a communicator, which torch makes with the first collective.
        dist.barrier(group, device_ids=[torch.cuda.current_device()])

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns the next buffer of a size.

        Raises:
            RuntimeError: It is still in use.
        """
        size_bytes = math.prod(size) * dtype.itemsize
        ring = self._rings[size_bytes]
        if len(ring) < BUFFERS:
            buffer = _empty(size_bytes, device)
        else:
            buffer, lent = ring.popleft()
            if lent() is not None:
                raise RuntimeError(f"more than {BUFFERS} gathered layers of {size_bytes} bytes are in use at once")
        view = buffer.view(dtype).view(*size)
        ring.append((buffer, weakref.ref(view)))
        return view

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        """Gathers, once all ranks know of each other's memory; torch remembers what they know."""
        symmetric_memory.rendezvous(output_tensor, group.group_name)
        return super().__call__(output_tensor, input_tensor, group, async_op)


def _empty(size_bytes: int, device: torch.device) -> Tensor:
    with torch.cuda.use_mem_pool(symmetric_memory.get_mem_pool(device)):
        return torch.empty(size_bytes, dtype=torch.uint8, device=device)
