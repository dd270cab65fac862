"""The order of what training draws: a pure function of its arguments, so that a run resumes by its step number alone.

Shapes: U units of an epoch, G units of a micro-batch on all ranks together.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np
import torch

WINDOW = 50
"""Optimiser steps among whose units those of like length are put together."""


def micro_batches(
    seed: int,
    num_units: int,
    batch_size: int,
    world_size: int,
    rank: int,
    shuffle: bool,
    start: int = 0,
    *,
    accumulate: int = 1,
    lengths: np.ndarray | None = None,
    visual: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yields the units of one micro-batch after another, (batch_size,) int64, without end.

    The epochs' orders stand one behind the other in a single stream, so no unit is dropped and a micro-batch may span
    two epochs. Micro-batch m of all ranks takes the m-th `batch_size * world_size` units of it. Each rank gets its
    slice of them, or, with `visual` or `tokens`, a share that is dealt so that no rank has much more work than another.

    Args:
        seed: The run's seed.
        num_units: Units of an epoch, at least 1.
        batch_size: Units of a micro-batch on one rank.
        world_size: Ranks that share the data.
        rank: Which of them this is.
        shuffle: Draw a new order each epoch; else units follow each other as they are.
        start: Micro-batches already consumed; they are computed past, not read.
        accumulate: Micro-batches of an optimiser step.
        lengths: (U,) put units of like length into a step and its micro-batches, see `_group`. What a step has depends
            on the number of its units alone, however ranks and micro-batches share them.
        visual: (U,) visual tokens; their sums are made alike over the ranks. Ranks that take one unit each have no
            choice; there, give these as `lengths`.
        tokens: (U,) tokens; their sums are made alike as far as `visual` leaves a choice.
    """
    assert all(values is None or len(values) == num_units for values in (lengths, visual, tokens)), "a value a unit"
    share = batch_size * world_size
    step = share * accumulate
    balanced = min(batch_size, world_size) > 1 and (visual is not None or tokens is not None)

    @lru_cache(maxsize=1)
    def epoch_order(epoch: int) -> np.ndarray:
        order_U = _permutation(seed, epoch, num_units) if shuffle else np.arange(num_units)
        return order_U if lengths is None else _group(order_U, lengths, step, skip=-epoch * num_units % step)

    for micro_batch in range(start, 1 << 62):
        units_G = _stretch(epoch_order, num_units, micro_batch * share, share)
        if not balanced:
            yield units_G[rank * batch_size : (rank + 1) * batch_size]
            continue
        visual_G, tokens_G = (_values(values, units_G) for values in (visual, tokens))
        yield units_G[_deal(visual_G, tokens_G, world_size) == rank]


def _values(values_U: np.ndarray | None, units_G: np.ndarray) -> np.ndarray:
    """Returns (G,) int64."""
    return np.zeros(len(units_G), dtype=np.int64) if values_U is None else values_U[units_G].astype(np.int64)


def _stretch(epoch_order: Callable[[int], np.ndarray], num_units: int, first: int, count: int) -> np.ndarray:
    """Returns `count` units of the stream from position `first` on."""
    parts = []
    while count:
        epoch, begin = divmod(first, num_units)
        part = epoch_order(epoch)[begin : begin + count]
        parts.append(part)
        first, count = first + len(part), count - len(part)
    return np.concatenate(parts)


def _permutation(seed: int, epoch: int, num_units: int) -> np.ndarray:
    # A hash, not seed + epoch: else epoch 1 of seed 42 would repeat epoch 0 of seed 43.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    return torch.randperm(num_units, generator=generator).numpy()


def _group(order_U: np.ndarray, lengths_U: np.ndarray, step: int, skip: int) -> np.ndarray:
    """Returns the order with units of like length side by side, in steps of `step` units, each sorted by length.

    Windows of up to `WINDOW` steps are sorted by length and cut into steps. These follow each other by the first unit
    that each has in the given order: at random in a shuffled one, so neither the longest nor the shortest come first.
    The `skip` units that complete a step of the epoch before, and those that begin one of the epoch after, stay as they
    are.
    """
    num_steps = max(len(order_U) - skip, 0) // step
    if not num_steps:
        return order_U
    head_U, middle, tail_U = np.split(order_U, [skip, skip + num_steps * step])
    # Windows of equal size, not a last one of few steps, which would hardly be sorted.
    num_windows = -(-num_steps // WINDOW)
    window = np.repeat(np.arange(num_steps) * num_windows // num_steps, step)
    steps = np.lexsort((lengths_U[middle], window)).reshape(num_steps, step)
    steps = steps[np.argsort(steps.min(axis=1))]
    return np.concatenate([head_U, middle[steps.ravel()], tail_U])


def _deal(visual_G: np.ndarray, tokens_G: np.ndarray, world_size: int) -> np.ndarray:
    """Returns (G,) the rank of each unit, equally many for each.

    The unit with the most visual tokens is dealt first, each to the rank that has the fewest so far, of equal ones to
    that with the fewest tokens. Units without visual tokens follow, by tokens alone. Plain slices are kept where that
    is no better: neither the largest sum of visual tokens nor, at equal ones, that of tokens is ever above theirs.
    """
    batch_size = len(visual_G) // world_size
    slices_G = np.arange(len(visual_G)) // batch_size
    dealt_G = np.empty_like(slices_G)
    largest = np.lexsort((-tokens_G, -visual_G)).tolist()
    num_visual = np.count_nonzero(visual_G)
    visual, tokens = visual_G.tolist(), tokens_G.tolist()
    free, held = [batch_size] * world_size, [0] * world_size
    for part in (largest[:num_visual], largest[num_visual:]):
        # Text leaves the sums of visual tokens as they are, so the second round compares tokens only.
        ranks = [(0, held[rank], rank) for rank in range(world_size) if free[rank]]
        heapify(ranks)
        for unit in part:
            seen, _, rank = heappop(ranks)
            dealt_G[unit] = rank
            free[rank] -= 1
            held[rank] += tokens[unit]
            if free[rank]:
                heappush(ranks, (seen + visual[unit], held[rank], rank))
    return min(slices_G, dealt_G, key=lambda rank_G: _largest_sums(rank_G, visual_G, tokens_G))


def _largest_sums(rank_G: np.ndarray, visual_G: np.ndarray, tokens_G: np.ndarray) -> tuple[float, float]:
    return np.bincount(rank_G, weights=visual_G).max(), np.bincount(rank_G, weights=tokens_G).max()
