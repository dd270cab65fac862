"""`metrics.jsonl`: one JSON object a line, the truth that every tracker and plot is a view of.

A line is `{"step": 40, "train/loss": 0.81, ...}`: the step first, the other keys sorted. JSON has no NaN and no
infinity, so such a value is written as null, and its key stands in `nonfinite` with `nan`, `inf` or `-inf`; `read` puts
the number back. Each line is one write to the operating system: a process that is killed loses at most the line that it
was writing, and the torn end is dropped by whoever reads or appends next.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from harness.errors import UserError

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""`step` and the figures measured at it."""

NONFINITE = "nonfinite"


class MetricsFile:
    """Appends rows to a metrics file. One process writes it: rank 0.

    Args:
        path: The file; made if missing. A torn last line, left by a process that was killed, is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.is_file() else b""
        rows = read(path) if content else []
        if not content.endswith(b"\n") or len(rows) != content.count(b"\n"):
            _rewrite(path, rows)
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, row: Mapping[str, Any]) -> Row:
        """Appends one row and hands it to the operating system before it returns.

        Args:
            step: Optimiser steps done.
            row: Figures by name; numbers, or tensors of one element.

        Returns:
            The row as `read` will give it.

        Raises:
            TypeError: A value is no number.
        """
        whole: Row = {"step": step} | {key: _number(key, value) for key, value in row.items() if key != "step"}
        self._file.write(_line(whole))
        return whole

    def truncate_after(self, step: int) -> None:
        """Drops the rows of later steps, which a resumed run will measure again. The file is replaced atomically."""
        rows = read(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) == len(rows):
            return
        self._file.close()
        _rewrite(self.path, kept)
        self._file = self.path.open("ab", buffering=0)
        log.info("%s: dropped %d rows after step %d, which run again", self.path.name, len(rows) - len(kept), step)

    def close(self) -> None:
        """Closes the file; rows written so far are safe without it."""
        self._file.close()

    def __enter__(self) -> "MetricsFile":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self.close()


def read(path: Path) -> list[Row]:
    """Reads all rows, in the order in which they were written.

    Raises:
        UserError: The file is missing, or a line other than a torn last one is no row.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run folder holds a metrics.jsonl once it has logged a step")
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_parse(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a row of metrics ({error}); remove the line") from error
            log.warning("%s:%d: the last line is torn, as a killed process leaves it; it is left out", path, number)
    return rows


def _parse(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("it has no step")
    return row | {key: float(kind) for key, kind in row.pop(NONFINITE, {}).items()}


def _number(key: str, value: Any) -> int | float:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"metric {key} is {type(value).__name__}, not a number")


def _line(row: Row) -> bytes:
    special = {key: str(value) for key, value in sorted(row.items()) if _is_special(value)}
    plain = {key: None if key in special else value for key, value in sorted(row.items()) if key != "step"}
    marked = {"step": row["step"]} | plain | ({NONFINITE: special} if special else {})
    return (json.dumps(marked, allow_nan=False) + "\n").encode()


def _is_special(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _rewrite(path: Path, rows: Iterable[Row]) -> None:
    # In the same folder: a rename across file systems would be a copy, which is not atomic.
    staged = path.with_name(path.name + ".tmp")
    with staged.open("wb") as file:
        file.writelines(_line(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
