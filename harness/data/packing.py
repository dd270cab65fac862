"""What a training step draws: single samples, packs, or batches of a token budget, planned from lengths alone.

Packs are made by best-fit decreasing: the longest sample first, each into the fullest pack that still holds it. Samples
of one length and packs of one free room are handled together, which gives the rooms of the one-by-one algorithm and
plans a million samples in 0.2 s. A plan depends on lengths and seed only and is the same in every epoch; the order of
its units is drawn anew. Where samples are to keep theirs, each unit takes those that come next.

Shapes: N samples, U units, R records of a plan.
"""

from array import array
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from harness.data.config import DataConfig


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Sets of samples, each of which a step draws as a whole; none is empty."""

    members: np.ndarray
    """(N,) int32: sample numbers, unit after unit."""
    bounds: np.ndarray
    """(U + 1,) int64: where each unit begins in `members`, and N."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, unit: int) -> np.ndarray:
        """Returns the sample numbers of a unit, counted from 0."""
        if not 0 <= unit < len(self):
            raise IndexError(unit)
        return self.members[self.bounds[unit] : self.bounds[unit + 1]]

    def sums(self, values_N: np.ndarray) -> np.ndarray:
        """Returns (U,) the sum over each unit's samples, in int64 or float64."""
        wide = np.float64 if values_N.dtype.kind == "f" else np.int64
        return np.add.reduceat(values_N[self.members], self.bounds[:-1], dtype=wide)


def units_of(lengths_N: np.ndarray, config: "DataConfig", seed: int) -> Units:
    """Returns packs, batches of a token budget or single samples, as the settings say.

    Args:
        lengths_N: Tokens of each sample.
        config: Settings of the data group.
        seed: The run's.
    """
    capacity = config.pack_length()
    limit = capacity or config.max_tokens_per_batch
    if limit is None:
        return singles(len(lengths_N))
    padded = capacity is None and not config.padding_free
    return fill(lengths_N, limit, padded, seed, shuffle=config.shuffle)


def fill(lengths_N: np.ndarray, budget: int, padded: bool, seed: int, *, shuffle: bool) -> Units:
    """Returns units of at most `budget` tokens: full ones, or such as keep the samples' order.

    Args:
        lengths_N: Tokens of each sample, 1 to `budget`.
        budget: Tokens of a unit.
        padded: Count each sample of a unit as long as the longest.
        seed: Decides which of equally long samples go together.
        shuffle: Whether the order is free.
    """
    return token_batches(lengths_N, budget, padded, seed) if shuffle else in_order(lengths_N, budget, padded)


def singles(num_samples: int) -> Units:
    """Returns a unit for each sample, in their order."""
    return Units(np.arange(num_samples, dtype=np.int32), np.arange(num_samples + 1, dtype=np.int64))


def best_fit(lengths_N: np.ndarray, capacity: int, seed: int) -> Units:
    """Returns packs of at most `capacity` tokens.

    Args:
        lengths_N: Tokens of each sample, 1 to `capacity`.
        capacity: Tokens of a pack.
        seed: Decides which of equally long samples go together.
    """
    order_N = _longest_first(lengths_N, capacity, seed)
    pack_N = _fit(lengths_N[order_N], capacity)
    sizes_U = np.bincount(pack_N)
    return Units(order_N[np.argsort(pack_N, kind="stable")], np.concatenate([[0], np.cumsum(sizes_U)]))


def token_batches(lengths_N: np.ndarray, budget: int, padded: bool, seed: int) -> Units:
    """Returns batches of at most `budget` tokens.

    Padded, a batch holds samples of like length, as many as the longest of them allows: no other choice needs fewer
    batches. Without padding length is no reason to keep samples together, and batches are filled as packs are.

    Args:
        lengths_N: Tokens of each sample, 1 to `budget`.
        budget: Tokens of a batch.
        padded: Count each sample of a batch as long as the longest.
        seed: Decides which of equally long samples go together.
    """
    if not padded:
        return best_fit(lengths_N, budget, seed)
    order_N = _longest_first(lengths_N, budget, seed)
    bounds = array("q", [0])
    while bounds[-1] < len(order_N):
        longest = int(lengths_N[order_N[bounds[-1]]])
        bounds.append(min(bounds[-1] + budget // longest, len(order_N)))
    return Units(order_N, np.array(bounds))


def in_order(lengths_N: np.ndarray, budget: int, padded: bool) -> Units:
    """Returns units of at most `budget` tokens that keep the samples' order: each takes what follows as far as it fits.

    Args:
        lengths_N: Tokens of each sample, 1 to `budget`.
        budget: Tokens of a unit.
        padded: Count each sample of a unit as long as the longest.
    """
    bounds = array("q", [0])
    longest = total = 0
    for number, length in enumerate(lengths_N.tolist()):
        longest, total = max(longest, length), total + length
        if ((number + 1 - bounds[-1]) * longest if padded else total) > budget:
            bounds.append(number)
            longest = total = length
    if len(lengths_N):
        bounds.append(len(lengths_N))
    return Units(np.arange(len(lengths_N), dtype=np.int32), np.array(bounds))


def efficiency(units: Units, lengths_N: np.ndarray, capacity: int) -> float:
    """Returns the share of the units' capacity that holds tokens, 0 to 1."""
    return int(lengths_N[units.members].sum(dtype=np.int64)) / (len(units) * capacity)


def _longest_first(lengths_N: np.ndarray, capacity: int, seed: int) -> np.ndarray:
    """Returns (N,) int32 sample numbers by falling length, equal lengths in random order."""
    assert not len(lengths_N) or (lengths_N.min() >= 1 and lengths_N.max() <= capacity), "lengths are 1 to capacity"
    generator = torch.Generator().manual_seed(seed)
    drawn_N = torch.randperm(len(lengths_N), generator=generator).numpy().astype(np.int32)
    return drawn_N[np.argsort(-lengths_N[drawn_N].astype(np.int64), kind="stable")]


def _fit(falling_N: np.ndarray, capacity: int) -> np.ndarray:
    """Returns (N,) the pack of each sample, whose lengths fall."""
    lengths, counts = np.unique(-falling_N.astype(np.int64), return_counts=True)
    packs = _OpenPacks(capacity, shortest=int(falling_N[-1]) if len(falling_N) else 1)
    for length, count in zip((-lengths).tolist(), counts.tolist(), strict=True):
        while count:
            count -= packs.add(length, count)
    return packs.assigned()


class _OpenPacks:
    """Runs of consecutive packs by their free room, and a record of what was put where.

    A record says: each of `count` packs from number `first` on takes the next `each` samples.
    """

    def __init__(self, capacity: int, shortest: int) -> None:
        self._capacity = capacity
        self._shortest = shortest
        self._num_packs = 0
        self._runs: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        # Bit r is set where a pack has r tokens free: finds the smallest room that fits without a search.
        self._rooms = 0
        self._first, self._count, self._each = array("q"), array("q"), array("q")

    def add(self, length: int, count: int) -> int:
        """Puts samples of one length into the fullest packs that hold them, until these are full or none is left.

        Args:
            length: Tokens of a sample, not over that of the samples before.
            count: Samples at hand.

        Returns:
            How many samples were placed, at least 1.
        """
        room, first, stop = self._take(length, count)
        # A pack that took one sample is the fullest that holds the next: each is filled before the next is begun.
        each = room // length
        whole = min(stop - first, count // each)
        self._record(first, whole, each, room - each * length)
        first, placed = first + whole, whole * each
        if first < stop and placed < count:
            self._record(first, 1, count - placed, room - (count - placed) * length)
            first, placed = first + 1, count
        self._open(room, first, stop)
        return placed

    def assigned(self) -> np.ndarray:
        """Returns (N,) int64 the pack of each sample, in the order in which they came."""
        first_R, count_R, each_R = (np.array(column) for column in (self._first, self._count, self._each))
        size_R = count_R * each_R
        record_N = np.repeat(np.arange(len(size_R), dtype=np.int32), size_R)
        place_N = np.arange(len(record_N)) - (np.cumsum(size_R) - size_R)[record_N]
        return first_R[record_N] + place_N // each_R[record_N]

    def _take(self, length: int, count: int) -> tuple[int, int, int]:
        """Returns the smallest room that holds `length`, and a run of packs with it; new packs where none has it."""
        fitting = self._rooms >> length
        if not fitting:
            first = self._num_packs
            self._num_packs += -(-count // (self._capacity // length))
            return self._capacity, first, self._num_packs
        room = length + (fitting & -fitting).bit_length() - 1
        runs = self._runs[room]
        first, stop = runs.pop()
        if not runs:
            self._rooms ^= 1 << room
        return room, first, stop

    def _record(self, first: int, count: int, each: int, room: int) -> None:
        if count:
            self._first.append(first)
            self._count.append(count)
            self._each.append(each)
            self._open(room, first, first + count)

    def _open(self, room: int, first: int, stop: int) -> None:
        if first < stop and room >= self._shortest:
            self._runs[room].append((first, stop))
            self._rooms |= 1 << room
