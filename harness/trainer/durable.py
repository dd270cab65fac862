"""Files that are on the disk when a function returns, and a file that knows the hash of what it was given."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until all files below a folder are on the disk, then for the names of each folder."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(path, name))
        sync(Path(path))


def write_text(path: Path, text: str) -> None:
    """Writes a file that a reader sees whole: staged beside it, synced, renamed, and the name synced too."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    with open(stage, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(stage, path)
    sync(path.parent)


class HashedFile:
    """A new file for torch.save, with size and sha256 of what was written, which no disk can have changed.

    An error is kept until the file is closed: within torch.save it would pass through C++, which ends in another one.
    """

    def __init__(self, path: Path) -> None:
        """Args: the file, which is made with its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.size = 0
        self._path = path
        self._hash = hashlib.sha256()
        self._error: OSError | None = None
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by __exit__

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Takes bytes and returns how many."""
        view = memoryview(data).cast("B")
        if self._error is None:
            self._hash.update(view)
            try:
                self._file.write(view)
            except OSError as error:
                self._error = error
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Left to the end."""

    def __enter__(self) -> "HashedFile":
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until all is on the disk.

        Raises:
            OSError: Something could not be written.
        """
        try:
            if kind is None and self._error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            with suppress(OSError):  # what is left in the buffer of a full disk
                self._file.close()
        if kind is None and self._error is not None:
            raise self._error


def save(state: dict[str, Any], path: Path) -> tuple[int, str]:
    """Writes a state as torch.save does, synced, and returns size and sha256 of what was written.

    Raises:
        OSError: The disk took it not.
    """
    with HashedFile(path) as file:
        torch.save(state, file)  # type: ignore[arg-type]
    return file.size, file.sha256
