"""CSV and TSV files, found again by offset. Nothing is typed: a cell is text, an empty one is null.

Two kinds of cells are more than text. Those of images and videos that hold a JSON list or object become one; those of
label, min_pixels and max_pixels become numbers and truth values. Messages, tools, history and objects may be JSON too:
the formats read those from text themselves.
"""

import csv
import hashlib
import io
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.row_error import RowError
from harness.data.source.file_bytes import FileBytes
from harness.data.source.json_text import MAX_ROW_BYTES, decode, parse_json
from harness.data.source.table_lines import BOM
from harness.errors import UserError, reject

_MEDIA = frozenset(("image", "images", "video", "videos", "rejected_images", "rejected_videos"))
_SCALARS = frozenset(("label", "min_pixels", "max_pixels"))
_WORDS = {"True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Header:
    """How a record becomes a row."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    """What `data.columns` makes of the names, in lower case."""
    delimiter: str

    def row(self, content: bytes, origin: str) -> dict[str, Any]:
        """Parses one record.

        Raises:
            RowError: Not UTF-8, not CSV, or more or fewer cells than columns.
        """
        text = decode(content, origin)
        try:
            cells = next(_reader(text, self.delimiter), [])
        except csv.Error as error:
            raise RowError(origin, "not CSV", f"not CSV ({error}); check the row's quotes") from error
        if len(cells) != len(self.names):
            detail = f"{len(cells)} cells for {len(self.names)} columns; quote cells that hold a {self.delimiter!r}"
            raise RowError(origin, "not CSV", detail)
        # pandas writes its row numbers into a column without a name.
        return {
            name: _cell(key, cell, origin) for name, key, cell in zip(self.names, self.keys, cells, strict=True) if name
        }


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record stands."""

    start: int
    line: int
    content: bytes


@dataclass(frozen=True, slots=True)
class CsvTable:
    """Records by number."""

    name: str
    folder: Path
    digest: str
    file: FileBytes
    header: Header
    bounds_N1: np.ndarray
    """Offsets at which the N rows begin, and the file's size."""
    lines_N: np.ndarray

    def __len__(self) -> int:
        return len(self.lines_N)

    def raw(self, index: int) -> Any:
        """Returns the row as its file has it; raises RowError where it can not be read."""
        start, stop = self.bounds_N1[index], self.bounds_N1[index + 1]
        return self.header.row(self.file.read(int(start), int(stop)), self.origin(index))

    def origin(self, index: int) -> str:
        """Returns `file.csv:12`."""
        return f"{self.name}:{self.lines_N[index]}"


def open_csv(path: str, name: str, key: str, delimiter: str, columns: Mapping[str, str]) -> CsvTable:
    """Finds the records of a file and takes its hash.

    Args:
        path: The file.
        name: As the user wrote it.
        key: Config key that names it, for messages.
        delimiter: Between cells.
        columns: Their column to our key.

    Raises:
        UserError: No header, a column twice, or a quote that never closes.
    """
    file = FileBytes.of(path)
    header = read_header(path, name, key, delimiter, columns)
    starts, lines = array("q"), array("q")
    for record in records(path, name, delimiter):
        starts.append(record.start)
        lines.append(record.line)
    bounds_N1 = np.append(np.array(starts, dtype=np.int64), file.size)
    with open(path, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return CsvTable(
        name, Path(path).absolute().parent, digest, file, header, bounds_N1, np.array(lines, dtype=np.int64)
    )


def read_header(path: str, name: str, key: str, delimiter: str, columns: Mapping[str, str]) -> Header:
    """Reads the names of the columns."""
    first = next(_walk(path, name, delimiter), None)
    if first is None:
        raise reject(key, name, "the file has no rows")
    try:
        names = next(_reader(decode(first.content, f"{name}:{first.line}"), delimiter))
    except csv.Error as error:
        raise _unreadable(name, first.line, str(error)) from error
    twice = [column for column in names if column and names.count(column) > 1]
    if twice:
        raise reject(key, name, f"the column {twice[0]!r} stands twice in the first line; rename one")
    return Header(tuple(names), tuple(columns.get(column, column).lower() for column in names), delimiter)


def records(path: str, name: str, delimiter: str) -> Iterator[Record]:
    """Yields the records behind the header, one after the other."""
    walk = _walk(path, name, delimiter)
    next(walk, None)
    return walk


def _walk(path: str, name: str, delimiter: str) -> Iterator[Record]:
    """Yields every record that is not blank, undecoded."""
    taken: list[bytes] = []
    with open(path, "rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        start, line = file.tell(), 1
        reader = _reader(_lines(file, taken), delimiter, strict=False)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise _unreadable(name, line, str(error)) from error
            content = b"".join(taken)
            if cells is None:
                return
            if cells:
                _check_closed(content, taken, name, line, delimiter)
                yield Record(start, line, content)
            start, line = start + len(content), line + len(taken)
            taken.clear()


def _lines(file: io.BufferedReader, taken: list[bytes]) -> Iterator[str]:
    """Yields lines to the CSV reader, and keeps the bytes of those that it took for the present record."""
    total = 0
    while content := file.readline(MAX_ROW_BYTES + 1):
        total = len(content) + (total if taken else 0)
        if total > MAX_ROW_BYTES:
            raise csv.Error(f"a record of over {MAX_ROW_BYTES >> 20} MiB")
        taken.append(content)
        yield content.decode("utf-8", "surrogateescape")


def _check_closed(content: bytes, taken: list[bytes], name: str, line: int, delimiter: str) -> None:
    """Refuses a quote that is open at the end of the file: it swallowed all rows behind it."""
    if len(taken) == 1 and content.count(b'"') % 2 == 0:
        return
    try:
        next(_reader(content.decode("utf-8", "surrogateescape"), delimiter))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise _unreadable(name, line, "a quote is open up to the end of the file") from error
    except RowError:
        pass  # told when the row is read


def _unreadable(name: str, line: int, what: str) -> UserError:
    return UserError(f"{name}:{line}: not CSV ({what}); check the quotes from here on")


def _reader(text: str | Iterator[str], delimiter: str, strict: bool = True) -> Iterator[list[str]]:
    # Of the whole process; nothing else here reads CSV, and the limit of 128 KiB cuts off long texts.
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = io.StringIO(text, newline="") if isinstance(text, str) else text
    return csv.reader(lines, delimiter=delimiter, strict=strict)


def _cell(key: str, cell: str, origin: str) -> Any:
    if cell == "":
        return None
    is_json = (key in _MEDIA and cell.lstrip()[:1] in ("[", "{")) or key in _SCALARS
    if not is_json:
        return cell
    if cell.strip() in _WORDS:
        return _WORDS[cell.strip()]
    try:
        return parse_json(cell.encode(), origin)
    except RowError:
        return cell  # a path may begin with a bracket; what it is not, the format says
