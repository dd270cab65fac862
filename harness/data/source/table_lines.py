"""JSONL and text files: a row is a line that is not blank, found again by its offset.

Eight bytes a row are kept. Offsets come from one pass over the file, in blocks, that also takes its hash: about a
second for a million lines.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.source.file_bytes import FileBytes
from harness.data.source.json_text import MAX_ROW_BYTES, check_size, decode

Parse = Callable[[bytes, str], Any]
"""Turns a line and its origin into a raw row."""

BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 23
_NEWLINE = 10
_IS_SPACE = np.zeros(256, dtype=bool)
_IS_SPACE[list(b" \t\r\n\x0b\x0c")] = True


def parse_text(line: bytes, origin: str) -> dict[str, str]:
    """Returns a line as a row of pre-training text."""
    check_size(line, origin)
    return {"text": decode(line, origin).strip("\r\n")}


@dataclass(frozen=True, slots=True)
class LineTable:
    """Lines by number."""

    name: str
    folder: Path
    digest: str
    file: FileBytes
    parse: Parse
    bounds_N1: np.ndarray
    """Offsets at which the N rows begin, and the file's size."""
    blanks_K: np.ndarray
    """Of each blank line, how many rows stand before it; ascending."""

    def __len__(self) -> int:
        return len(self.bounds_N1) - 1

    def raw(self, index: int) -> Any:
        """Returns the row as its file has it; raises RowError where it can not be read."""
        start, stop = self.bounds_N1[index], self.bounds_N1[index + 1]
        # Blank lines behind a row lie in its span; a span over the limit is cut, which the parser then refuses.
        content = self.file.read(int(start), min(int(stop), int(start) + MAX_ROW_BYTES + 2))
        return self.parse(content.partition(b"\n")[0], self.origin(index))

    def origin(self, index: int) -> str:
        """Returns `file.jsonl:12`, the line counted with blank ones."""
        line = index + 1 + int(np.searchsorted(self.blanks_K, index, side="right"))
        return f"{self.name}:{line}"


def open_lines(path: str, name: str, parse: Parse) -> LineTable:
    """Finds the lines of a file and takes its hash."""
    file = FileBytes.of(path)
    starts_L, doubtful, digest = _scan(path)
    blank = [at for at in doubtful.tolist() if _is_blank(file, int(starts_L[at]), _end(starts_L, at, file.size))]
    bounds_N1 = np.append(np.delete(starts_L, blank), file.size)
    blanks_K = np.array(blank, dtype=np.int64) - np.arange(len(blank))
    return LineTable(name, Path(path).absolute().parent, digest, file, parse, bounds_N1, blanks_K)


def _scan(path: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns where the L lines begin, which of them begin with white space, and the file's hash."""
    content = hashlib.sha256()
    starts: list[np.ndarray] = []
    spaced: list[np.ndarray] = []
    position = num_lines = 0
    buffer = bytearray(_BLOCK)
    with open(path, "rb", buffering=0) as file:
        head = file.read(len(BOM))
        if head == BOM:
            content.update(head)
            position = len(head)
        file.seek(position)
        begins = True  # the block's first byte begins a line
        while length := file.readinto(buffer):
            block = np.frombuffer(buffer, dtype=np.uint8, count=length)
            content.update(memoryview(buffer)[:length])
            found = np.flatnonzero(block == _NEWLINE) + 1
            here = np.concatenate((np.zeros(int(begins), dtype=np.int64), found))
            begins = bool(len(found)) and int(found[-1]) == length
            here = here[: len(here) - int(begins)]
            spaced.append(np.flatnonzero(_IS_SPACE[block[here]]) + num_lines)
            starts.append(here + position)
            num_lines += len(here)
            position += length
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate((empty, *starts)), np.concatenate((empty, *spaced)), content.hexdigest()


def _end(starts_L: np.ndarray, at: int, size: int) -> int:
    return int(starts_L[at + 1]) if at + 1 < len(starts_L) else size


def _is_blank(file: FileBytes, start: int, end: int) -> bool:
    return end - start <= MAX_ROW_BYTES and not file.read(start, end).strip()
