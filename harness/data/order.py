"""The order of training rows: a pure function of its arguments, so that a run resumes by its step number alone."""

import hashlib
from collections.abc import Iterator

import torch


def micro_batches(
    seed: int, num_rows: int, batch_size: int, world_size: int, rank: int, shuffle: bool, start: int = 0
) -> Iterator[list[int]]:
    """Yields the rows of one micro-batch after another, without end.

    The epochs' orders stand one behind the other in a single stream, so no row is dropped and a micro-batch may span
    two epochs. Micro-batch m of all ranks takes the m-th `batch_size * world_size` rows of it, each rank its slice.

    Args:
        seed: The run's seed.
        num_rows: Rows of an epoch, at least 1.
        batch_size: Rows of a micro-batch on one rank.
        world_size: Ranks that share the data.
        rank: Which of them this is.
        shuffle: Draw a new order each epoch; else rows follow each other as they are.
        start: Micro-batches already consumed; they are computed past, not read.
    """
    share = batch_size * world_size
    epoch = -1
    order: list[int] = []
    for micro_batch in range(start, 1 << 62):
        rows = []
        first = micro_batch * share + rank * batch_size
        for position in range(first, first + batch_size):
            if position // num_rows != epoch:
                epoch = position // num_rows
                order = _epoch_order(seed, epoch, num_rows) if shuffle else list(range(num_rows))
            rows.append(order[position % num_rows])
        yield rows


def _epoch_order(seed: int, epoch: int, num_rows: int) -> list[int]:
    # A hash, not seed + epoch: else epoch 1 of seed 42 would repeat epoch 0 of seed 43.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    return torch.randperm(num_rows, generator=generator).tolist()
