"""Rows of several tables by number, read and checked each time: in memory is one integer a row."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from harness.data.config import BboxScale
from harness.data.format.canonical import RowFormat, canonical
from harness.data.media.reference import MediaPolicy
from harness.data.row import Row
from harness.data.source.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How raw rows become canonical ones; the same for all files of a run."""

    columns: Mapping[str, str]
    bbox: BboxScale
    root: Path | None
    max_pixels: int
    cache: Path | None
    time_limit_s: float

    def of(self, folder: Path) -> RowFormat:
        """Returns the format of the rows of a file in a folder."""
        media = MediaPolicy(
            base=self.root if self.root is not None else folder,
            root=self.root,
            max_pixels=self.max_pixels,
            cache=self.cache,
            time_limit_s=self.time_limit_s,
        )
        return RowFormat(media=media, columns=self.columns, bbox=self.bbox)

    def settings(self) -> list[str]:
        """Returns what changes a row, for hashes."""
        return [str(sorted(self.columns.items())), self.bbox.name]


@dataclass(frozen=True)
class TableRows:
    """The rows of an index over tables, one behind the other."""

    tables: tuple[Table, ...]
    reading: Reading
    index_N: np.ndarray
    """Of each row its number among the rows of all tables; int64."""

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, index: int) -> Row:
        number, local = self._place(index)
        table = self.tables[number]
        return canonical(table.raw(local), table.origin(local), self._formats[number])

    def origin(self, index: int) -> str:
        """Returns `file.jsonl:12` without reading the row."""
        number, local = self._place(index)
        return self.tables[number].origin(local)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of content and of place: what is kept of a row names its file and the paths of its media."""
        places = [f"{table.digest} {table.name} {table.folder}" for table in self.tables]
        settings = [*self.reading.settings(), str(self.reading.root), str(self.reading.max_pixels)]
        return digest([*places, *settings], self.index_N)

    @property
    def content(self) -> str:
        """Hash of the content alone, wherever it lies."""
        return digest([*(table.digest for table in self.tables), *self.reading.settings()], self.index_N)

    @cached_property
    def _formats(self) -> list[RowFormat]:
        return [self.reading.of(table.folder) for table in self.tables]

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(table) for table in self.tables)]

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self.index_N[index])
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]


def digest(texts: Sequence[str], *indices: np.ndarray) -> str:
    """Hashes texts and arrays of integers."""
    content = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass"))
    for index in indices:
        content.update(b"\n" + np.ascontiguousarray(index, dtype="<i8").tobytes())
    return content.hexdigest()
