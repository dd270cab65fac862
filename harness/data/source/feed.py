"""Raw rows one after the other: what a stream reads. Nothing of a file is held but the row at hand.

A row comes as its origin and a call that parses it, so that a rank pays nothing for the rows of others.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.data.source import table_arrow
from harness.data.source.found import Found, Kind
from harness.data.source.json_text import MAX_ROW_BYTES, parse_json
from harness.data.source.open import Options, open_table
from harness.data.source.table import Table
from harness.data.source.table_csv import read_header, records
from harness.data.source.table_lines import BOM, Parse, parse_text
from harness.errors import reject

Item = tuple[str, Callable[[], Any]]
"""Origin, and what returns the raw row or raises RowError."""

_HEAD_BYTES = 1 << 20
_BATCH = 64
"""Rows of parquet that are in memory at a time."""


class Feed(Protocol):
    """One source in the order of its rows."""

    @property
    def folder(self) -> Path:
        """Where the relative paths of its rows start from."""

    @property
    def digest(self) -> str:
        """Hash of what is known without reading the rows: of a file its size and its first MiB."""

    def __iter__(self) -> Iterator[Item]:
        """Begins at the first row, each time."""


@dataclass(frozen=True, slots=True)
class FileFeed:
    """A file that is read from its beginning each time."""

    found: Found
    digest: str
    items: Callable[[], Iterator[Item]]

    @property
    def folder(self) -> Path:
        """Where the relative paths of its rows start from."""
        return self.found.folder

    def __iter__(self) -> Iterator[Item]:
        # Without this, a file that is emptied during a run would be read again and again.
        empty = True
        for item in self.items():
            empty = False
            yield item
        if empty:
            raise reject(self.found.key, self.found.name, "the file has no rows")


@dataclass(frozen=True, slots=True)
class TableFeed:
    """A source that is read by number anyway."""

    table: Table

    @property
    def folder(self) -> Path:
        """Where the relative paths of its rows start from."""
        return self.table.folder

    @property
    def digest(self) -> str:
        """That of the table, over all its content."""
        return self.table.digest

    def __iter__(self) -> Iterator[Item]:
        for number in range(len(self.table)):
            yield self.table.origin(number), partial(self.table.raw, number)


def open_feed(found: Found, options: Options) -> Feed:
    """Opens one source.

    Raises:
        UserError: It can not be read or has no rows.
    """
    try:
        feed = _OPEN[found.kind](found, options)
        next(iter(feed))
    except OSError as error:
        raise reject(found.key, found.name, f"can not be read ({error.strerror or error})") from error
    return feed


def _of_file(items: Callable[[Found, Options], Iterator[Item]]) -> Callable[[Found, Options], Feed]:
    def open_file(found: Found, options: Options) -> Feed:
        with open(found.path, "rb") as file:
            content = hashlib.sha256(file.read(_HEAD_BYTES))
            content.update(str(file.seek(0, 2)).encode())
        return FileFeed(found, content.hexdigest(), partial(items, found, options))

    return open_file


def _lines(parse: Parse, found: Found, options: Options) -> Iterator[Item]:
    with open(found.path, "rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 2):
            number += 1
            rest = line
            while rest[-1:] != b"\n" and len(rest) > MAX_ROW_BYTES:
                rest = file.readline(MAX_ROW_BYTES + 2)  # of a line over the limit, which the parser then refuses
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.isspace() and line:
                origin = f"{found.name}:{number}"
                yield origin, partial(parse, line.removesuffix(b"\n"), origin)


def _records(delimiter: str, found: Found, options: Options) -> Iterator[Item]:
    header = read_header(found.path, found.name, found.key, delimiter, options.columns)
    for record in records(found.path, found.name, delimiter):
        origin = f"{found.name}:{record.line}"
        yield origin, partial(header.row, record.content, origin)


def _parquet(found: Found, options: Options) -> Iterator[Item]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(found.path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in range(batch.num_rows):
                    origin = f"{found.name}[{number}]"
                    yield origin, partial(table_arrow.first_row, batch.slice(row, 1), origin)
                    number += 1
    except pyarrow.ArrowException as error:
        raise table_arrow.unreadable(found, error) from error


def _open_hub(found: Found, options: Options) -> Feed:
    dataset = table_arrow.load_hub(found, streaming=True).with_format("arrow")
    return FileFeed(found, table_arrow.hub_digest(found, dataset), partial(_hub, found, dataset))


def _hub(found: Found, dataset: Any) -> Iterator[Item]:
    rows = iter(dataset)
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # of the network, and of `datasets`
            raise table_arrow.no_hub(found.key, found.name, error) from error
        if row is None:
            return
        origin = f"{found.name}[{number}]"
        yield origin, partial(table_arrow.first_row, row, origin)
        number += 1


def _by_number(found: Found, options: Options) -> Feed:
    return TableFeed(open_table(found, options))


_OPEN: Mapping[Kind, Callable[[Found, Options], Feed]] = {
    Kind.jsonl: _of_file(partial(_lines, parse_json)),
    Kind.txt: _of_file(partial(_lines, parse_text)),
    Kind.json: _by_number,
    Kind.csv: _of_file(partial(_records, ",")),
    Kind.tsv: _of_file(partial(_records, "\t")),
    Kind.parquet: _of_file(_parquet),
    Kind.saved: _by_number,
    Kind.hub: _open_hub,
}
