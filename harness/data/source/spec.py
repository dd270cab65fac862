"""What stands in `data.train`: `path_or_id[:subset[/subset2]][#rows]`, as in ms-swift's `--dataset`."""

import os
import re
from dataclasses import dataclass

from harness.errors import reject

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class Spec:
    """One entry of `data.train` or `data.val`."""

    text: str
    """As the user wrote it."""
    path: str
    """File, folder or hub id."""
    subsets: tuple[str, ...] = ()
    """Of a folder: sub-folders or splits. Of a hub id: configurations or splits."""
    sample: int | None = None
    """Rows to take; None takes all."""


def parse(key: str, text: str) -> Spec:
    """Takes an entry apart; the longest beginning that exists on disk is the path, whatever stands in it.

    Args:
        key: Config key, for messages.
        text: The entry.

    Raises:
        UserError: Not a number of rows behind `#`, or an empty path or subset.
    """
    if exists(text):
        return Spec(text, text)
    rest, sample = _sample(key, text)
    path, subsets = _subsets(rest)
    if not path:
        raise reject(key, text, "begin with a file, a folder or a hub id")
    if not all(subsets):
        raise reject(key, text, "names an empty subset; write path:subset or path:subset/subset2")
    return Spec(text, path, subsets, sample)


def exists(path: str) -> bool:
    """Whether a path is there, `~` being the home folder."""
    return os.path.exists(os.path.expanduser(path))


def _sample(key: str, text: str) -> tuple[str, int | None]:
    rest, mark, tail = text.rpartition("#")
    if not mark:
        return text, None
    if not (tail.isascii() and tail.isdigit() and len(tail) <= 12 and int(tail) > 0):
        raise reject(key, text, "no such file; behind # stands how many rows to take, 1 or more")
    return rest, int(tail)


def _subsets(text: str) -> tuple[str, tuple[str, ...]]:
    if exists(text):
        return text, ()
    colons = [at for at, char in enumerate(text) if char == ":"]
    if _DRIVE.match(text):
        colons = colons[1:]
    if not colons:
        return text, ()
    # A file's name may hold colons; where nothing exists, the first one ends the hub id.
    end = next((at for at in reversed(colons) if exists(text[:at])), colons[0])
    return text[:end], tuple(part.strip() for part in text[end + 1 :].split("/"))
