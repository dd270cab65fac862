"""Which rows train and which validate, as numbers: sampling, the split, and interleaving by weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import reject

_SPLIT, _SAMPLE, _REST = 0, 1, 2
"""Streams of random numbers, so that none depends on how much another draws."""
_MAX_ROWS = 2**31
"""Interleaving that would repeat rows beyond this is a mistake in the weights."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The rows that an entry leads to."""

    key: str
    """Config key, for messages."""
    text: str
    """The entry, for messages."""
    rows_N: np.ndarray
    """Numbers of its rows, in the order of its files."""
    sample: int | None
    """Rows to take of the N; None: all."""


def choose(
    entries: Sequence[Entry], split_ratio: float, *, shuffle: bool, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the training rows of each entry, and the validation rows that were set apart from them.

    A validation row is in no entry's training rows, however often its file is named. An entry of n rows that is to
    give N gives N less those of its rows that validate: below n by a random draw without replacement, above n in whole
    copies and such a draw for the rest. Without `shuffle` a draw takes the first rows.

    Args:
        entries: Of `data.train`.
        split_ratio: Share of the drawn rows that validates.
        shuffle: Draw at random.
        seed: Of split and draws.

    Raises:
        UserError: A side would be empty.
    """
    drawn = []
    for number, entry in enumerate(entries):
        chosen = _draw(len(entry.rows_N), entry.sample, shuffle, np.random.default_rng([seed, _SAMPLE, number]))
        drawn.append(entry.rows_N[chosen])
    val_M = _set_apart(drawn, split_ratio, seed) if split_ratio else np.zeros(0, dtype=np.int64)
    train = []
    for number, (entry, rows_D) in enumerate(zip(entries, drawn, strict=True)):
        pool = rows_D[~np.isin(rows_D, val_M)]
        if not len(pool):
            raise reject("data.split_ratio", split_ratio, f"leaves no training row of {entry.text}")
        wanted = (entry.sample or len(entry.rows_N)) - (len(rows_D) - len(pool))
        train.append(_repeat(pool, wanted, shuffle, np.random.default_rng([seed, _REST, number])))
    return train, val_M


def interleave(lengths: Sequence[int], weights: Sequence[float], *, until_all: bool, seed: int) -> np.ndarray:
    """Draws from sources by weight, as `datasets.interleave_datasets` does, and to the same result.

    Each source gives its rows in order, beginning again behind its last.

    Args:
        lengths: Rows of each source.
        weights: Their probabilities, up to a factor.
        until_all: Stop when every source has given its last row (all_exhausted) instead of the first that does.
        seed: Of the draws.

    Returns:
        Numbers of the rows of all sources joined.

    Raises:
        UserError: The weights would repeat rows without measure.
    """
    share = np.asarray(weights) / np.sum(weights)
    if until_all and np.max(np.asarray(lengths) / share) > _MAX_ROWS:
        raise reject("data.weights", list(weights), f"would need over {_MAX_ROWS:,} rows; give larger small weights")
    left = np.asarray(lengths).copy()
    blocks = []
    for block in draws(share, np.random.default_rng(seed)):
        blocks.append(block)
        left -= np.bincount(block, minlength=len(left))
        if (left <= 0).all() if until_all else (left <= 0).any():
            break
    drawn = np.concatenate(blocks)
    ends = [places[length - 1] for places, length in _places(drawn, lengths) if len(places) >= length]
    drawn = drawn[: (max(ends) if until_all else min(ends)) + 1]
    starts = np.cumsum([0, *lengths[:-1]])
    index = np.empty(len(drawn), dtype=np.int64)
    for start, (places, length) in zip(starts, _places(drawn, lengths), strict=True):
        index[places] = np.arange(len(places)) % length + start
    return index


def draws(share: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields which source is next, in blocks without end; `datasets` draws in blocks of the same size."""
    while True:
        yield generator.choice(len(share), size=1000, p=share)


def _places(drawn: np.ndarray, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    for source, length in enumerate(lengths):
        yield np.flatnonzero(drawn == source), length


def _draw(size: int, sample: int | None, shuffle: bool, generator: np.random.Generator) -> np.ndarray:
    """Returns sorted numbers below `size`, each once."""
    if sample is None or sample >= size:
        return np.arange(size)
    return np.sort(generator.choice(size, sample, replace=False)) if shuffle else np.arange(sample)


def _repeat(pool: np.ndarray, wanted: int, shuffle: bool, generator: np.random.Generator) -> np.ndarray:
    copies, rest = divmod(wanted, len(pool))
    return np.concatenate((np.tile(pool, copies), pool[_draw(len(pool), rest, shuffle, generator)]))


def _set_apart(drawn: Sequence[np.ndarray], ratio: float, seed: int) -> np.ndarray:
    """Returns the validation rows, sorted: a share of all rows that were drawn, each counted once."""
    rows = np.unique(np.concatenate(drawn))
    num_val = round(len(rows) * ratio)
    if not 0 < num_val < len(rows):
        raise reject("data.split_ratio", ratio, f"leaves one side empty with {len(rows)} rows")
    return np.sort(np.random.default_rng([seed, _SPLIT]).choice(rows, num_val, replace=False))
