"""JSON files: a list of rows, found again by offset; or JSON Lines under another name.

The list is walked once. Read as Latin-1 each byte is one character, so that the offsets of characters are those of
bytes; a row itself is read again as UTF-8 when it is wanted.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.row_error import RowError
from harness.data.source.file_bytes import FileBytes
from harness.data.source.json_text import MAX_ROW_BYTES, parse_json
from harness.data.source.table import Table
from harness.data.source.table_lines import BOM, open_lines
from harness.errors import reject

MAX_BYTES = 4 * 1024**3
"""A list is held in memory while it is walked; longer ones belong into JSON Lines."""

_SPACE = re.compile(r"[ \t\r\n]*")
# Lenient: what a row contains is judged when the row is read, and then the error is that row's own.
_WALKER = json.JSONDecoder(strict=False, parse_int=len, parse_float=len, parse_constant=len)


@dataclass(frozen=True, slots=True)
class ListTable:
    """Entries of a JSON list by number."""

    name: str
    folder: Path
    digest: str
    file: FileBytes
    spans_N2: np.ndarray
    """Offsets at which each row begins and ends."""

    def __len__(self) -> int:
        return len(self.spans_N2)

    def raw(self, index: int) -> Any:
        """Returns the row as its file has it; raises RowError where it can not be read."""
        start, stop = self.spans_N2[index].tolist()
        return parse_json(self.file.read(start, min(stop, start + MAX_ROW_BYTES + 1)), self.origin(index))

    def origin(self, index: int) -> str:
        """Returns `file.json[11]`."""
        return f"{self.name}[{range(len(self))[index]}]"


def open_json(path: str, name: str, key: str) -> Table:
    """Finds the rows of a file.

    Raises:
        UserError: Neither a list nor JSON Lines.
    """
    file = FileBytes.of(path)
    with open(path, "rb") as opened:
        first = _first_line(opened)
    if first[:1] != b"[":
        _check_is_row(first, name, key)
        return open_lines(path, name, parse_json)
    if file.size > MAX_BYTES:
        raise reject(key, name, f"a list of over {MAX_BYTES >> 30} GiB; write one row a line, as .jsonl")
    content = Path(path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    text = content.removeprefix(BOM).decode("latin-1")
    shift = len(content) - len(text)
    del content
    offsets = array("q")
    for start, stop in _spans(text, name, key):
        offsets.extend((start + shift, stop + shift))
    return ListTable(name, Path(path).absolute().parent, digest, file, np.array(offsets, dtype=np.int64).reshape(-1, 2))


def _first_line(opened: Any) -> bytes:
    for _ in range(1000):
        line: bytes = opened.readline(MAX_ROW_BYTES + 2).removeprefix(BOM)
        if line.strip() or not line:
            break
    return line.strip()


def _check_is_row(line: bytes, name: str, key: str) -> None:
    if not line:
        raise reject(key, name, "the file has no rows")
    if not (line[:1] == b"{" and line[-1:] == b"}"):
        raise reject(key, name, "holds neither a list of rows nor one row a line; write one of them")
    try:
        value = parse_json(line, name)
    except RowError:
        return  # told when the row is read
    if _is_columns(value):
        raise reject(key, name, "holds an object of columns; write a list of rows, or one row a line")


def _is_columns(value: dict[str, Any]) -> bool:
    """Whether an object looks like columns: several lists of equal length, and not the messages of one row."""
    if len(value) < 2 or not all(isinstance(cell, list) for cell in value.values()):
        return False
    return len({len(cell) for cell in value.values()}) == 1 and not {"messages", "conversations"} & value.keys()


def _spans(text: str, name: str, key: str) -> Iterator[tuple[int, int]]:
    """Yields where each entry of the list begins and ends."""
    at = _skip(text, _skip(text, 0) + 1)
    while text[at : at + 1] != "]":
        try:
            _, end = _WALKER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno} column {error.colno}"
            raise reject(key, name, f"not JSON at {place} ({error.msg}); nothing behind it can be read") from error
        except RecursionError as error:
            line = text.count("\n", 0, at) + 1
            raise reject(key, name, f"the row at line {line} is nested too deeply; flatten it") from error
        yield at, end
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            line = text.count("\n", 0, at) + 1
            raise reject(
                key, name, f"not JSON at line {line} (no comma between two rows); nothing behind it can be read"
            )
    if _skip(text, at + 1) != len(text):
        raise reject(key, name, "more stands behind the list; a .json file holds one list, or one row a line")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
