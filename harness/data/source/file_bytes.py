"""Spans of a file by offset, in any process: nothing of the file stays in memory."""

import os
from dataclasses import dataclass
from functools import lru_cache

from harness.errors import UserError

_MAX_OPEN = 64
"""Files that a process holds open; of more, those not read for longest are closed."""


@dataclass(frozen=True, slots=True)
class FileBytes:
    """A file as it was when it was indexed; pickles as its path."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> "FileBytes":
        """Notes a file's present state."""
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` to before `stop`.

        Raises:
            UserError: The file is gone, or not the one that was indexed.
        """
        # pread has no position that forked processes would share.
        content = os.pread(_opened(self).descriptor, stop - start, start)
        if len(content) != stop - start:
            raise _changed(self.path)
        return content


class _Handle:
    """An open file that closes itself when nobody reads from it any more."""

    def __init__(self, file: FileBytes) -> None:
        self.descriptor = os.open(file.path, os.O_RDONLY)
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _changed(file.path)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=_MAX_OPEN)
def _opened(file: FileBytes) -> _Handle:
    try:
        return _Handle(file)
    except OSError as error:
        raise UserError(f"{file.path}: can not be opened any more: {error.strerror}") from error


def _changed(path: str) -> UserError:
    return UserError(f"{path}: changed since it was indexed; keep data files as they are while a run reads them")
