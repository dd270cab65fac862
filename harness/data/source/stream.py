"""Rows without end and without a look at all of them before: `data.streaming`.

In each epoch the entries make one sequence, the same on all ranks, of which a rank takes every world-size-th row. Each
rank reads the files itself, so nothing waits for rank 0, and parses its own rows only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from random import Random
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from harness.data.files import Stopping
from harness.data.format.canonical import RowFormat, canonical
from harness.data.row import Row
from harness.data.row_error import RowError
from harness.data.source.feed import Feed, Item, open_feed
from harness.data.source.found import find
from harness.data.source.open import Options
from harness.data.source.rows import Reading, digest
from harness.data.source.selection import draws
from harness.data.source.spec import parse
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.data.files import FilesConfig

T = TypeVar("T")

FormattedItem = tuple[Item, RowFormat]


@dataclass(frozen=True, slots=True)
class Part:
    """What one entry of `data.train` leads to."""

    feeds: tuple[tuple[Feed, RowFormat], ...]
    sample: int | None
    """The first this many rows, beginning again behind the last; None: all once."""

    def __iter__(self) -> Iterator[FormattedItem]:
        items = ((item, how) for feed, how in self.feeds for item in feed)
        return items if self.sample is None else islice(chain(items, self._again()), self.sample)

    def _again(self) -> Iterator[FormattedItem]:
        while True:
            yield from ((item, how) for feed, how in self.feeds for item in feed)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStream:
    """The training rows of one or more entries."""

    parts: tuple[Part, ...]
    weights: tuple[float, ...] | None
    until_all: bool
    """With weights: whether an epoch ends with the last entry to give all its rows, or the first."""
    seed: int
    """Of the interleaving."""
    buffer: int
    """Rows among which the next one is drawn; 1 keeps the order."""
    fingerprint: str
    """Hash of what can be known without reading the rows."""

    def read(self, rank: int, world_size: int, seed: int) -> Iterator[Row | RowError]:
        """Yields this rank's share, epoch after epoch.

        Args:
            rank: This process's number.
            world_size: Processes that share the rows.
            seed: The run's, from which each epoch's order on each rank is drawn.

        Raises:
            UserError: A whole epoch had no row for this rank that can be used.
        """
        for epoch in count():
            own = islice(self._epoch(epoch), rank, None, world_size)
            usable = False
            for (origin, load), how in shuffled(own, self.buffer, Random(f"{seed} {epoch} {rank}")):
                try:
                    row = canonical(load(), origin, how)
                except RowError as error:
                    yield error
                else:
                    usable = True
                    yield row
            if not usable:
                what = f"rank {rank} of {world_size} found no row that can be used in all of data.train"
                raise UserError(f"{what}; it needs at least one for each rank")

    def _epoch(self, epoch: int) -> Iterator[FormattedItem]:
        if self.weights is None:
            return chain.from_iterable(self.parts)
        share = np.asarray(self.weights) / sum(self.weights)
        return interleaved(self.parts, share, until_all=self.until_all, seed=[self.seed, epoch])


def open_stream(config: "FilesConfig", reading: Reading, options: Options) -> FileStream:
    """Opens every entry of `data.train` and looks at its first row.

    Raises:
        UserError: One can not be read or has no rows.
    """
    specs = [parse("data.train", text) for text in config.train]
    parts = []
    known = [*reading.settings(), str(config.weights), config.stopping.name, str(config.seed)]
    for spec in specs:
        feeds = [open_feed(found, options) for found in find("data.train", spec)]
        parts.append(Part(tuple((feed, reading.of(feed.folder)) for feed in feeds), spec.sample))
        known += [str(spec.sample), *(feed.digest for feed in feeds)]
    return FileStream(
        parts=tuple(parts),
        weights=None if config.weights is None else tuple(config.weights),
        until_all=config.stopping is Stopping.all_exhausted,
        seed=config.seed,
        buffer=config.shuffle_buffer if config.shuffle else 1,
        fingerprint=digest(known),
    )


def shuffled(items: Iterator[T], size: int, random: Random) -> Iterator[T]:
    """Yields items in an order drawn from a buffer of `size`; each once."""
    buffer = list(islice(items, size))
    if size > 1:
        random.shuffle(buffer)
    for item in items:
        at = random.randrange(size)
        yield buffer[at]
        buffer[at] = item
    if size > 1:
        random.shuffle(buffer)
    yield from buffer


def interleaved(
    parts: Sequence[Part], share: np.ndarray, *, until_all: bool, seed: int | list[int]
) -> Iterator[FormattedItem]:
    """Yields from the parts by chance, to the order of `selection.interleave`, without knowing their lengths."""
    sources = [_Ahead(part) for part in parts]
    for block in draws(share, np.random.default_rng(seed)):
        for number in block.tolist():
            yield sources[number].take()
            if (all if until_all else any)(source.done for source in sources):
                return


class _Ahead:
    """Looks one item ahead, so that it is known at once when the last one was taken."""

    def __init__(self, part: Part) -> None:
        self.done = False
        self._part = part
        self._items = iter(part)
        self._next = next(self._items)

    def take(self) -> FormattedItem:
        """Returns the next item; begins again behind the last."""
        item = self._next
        following = next(self._items, None)
        if following is None:
            self.done = True
            self._items = iter(self._part)
            following = next(self._items)
        self._next = following
        return item
