"""The folder of all entries: found by content, bounded in size, shared by processes.

    <root>/<tower>/<first two digits>/<key>.feat    a key names the pixels and the tower, see key.py
    <root>/size                                     bytes of all entries; its lock orders those who write and evict

The RAM tier is the operating system's page cache: an entry that was read or written lately comes from memory, for every
worker, rank and trial at once, and makes room when programs need it. A second one of our own would hold the same bytes
twice and be no faster (docs/performance.md: 5.5 ms for 9 MB, from /dev/shm 8.1). Where the disk is slow or full,
`data.vit_cache.folder=/dev/shm/NAME` keeps the features in memory alone.

Evicted is what was used longest ago, but nothing that was used since this run began. Plain LRU would empty a folder
that is too small for an epoch before the next epoch reads it: every image is written, and none is found.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from harness.data.features import entry
from harness.data.features.entry import DamagedError

log = logging.getLogger(__name__)

LOW = 0.9
"""Share of the bound that an eviction leaves: it looks at every file, and should not come often."""
SPARE_BYTES = 2 << 30
"""What the disk keeps free, whatever the bound says."""
ABANDONED_S = 3600.0
"""A file that is being written for this long belongs to a process that was killed."""
_SUFFIX = ".feat"


@dataclass(frozen=True, slots=True)
class Store:
    """The entries of one vision tower. It can be pickled; nothing is open between calls."""

    root: Path
    tower: str
    """Fingerprint of the tower (hex)."""
    max_bytes: int
    """Bound on all entries below the root, those of other towers included."""
    started: float
    """`time.time()` at which the run opened it, to compare with times of files: what was used since is not evicted."""

    @property
    def folder(self) -> Path:
        """Returns the folder of this tower's entries."""
        return self.root / self.tower[:16]

    def probe(self) -> None:
        """Tries whether entries can be written.

        Raises:
            OSError: They can not.
        """
        with self._total():
            pass

    def path(self, key: str) -> Path:
        """Returns where the entry of a key is or would be."""
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def read(self, key: str) -> Tensor | None:
        """Returns the features of a key, (F, L, E), or None where there are none.

        Raises:
            DamagedError: There was a damaged entry; it is deleted.
        """
        path = self.path(key)
        try:
            features_FLE, status = entry.read(path, key)
        except DamagedError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        except OSError:  # not there, evicted this moment, or not readable: it is computed again in any case
            return None
        if status.st_mtime < self.started:
            with contextlib.suppress(OSError):
                os.utime(path)
        return features_FLE

    def write(self, key: str, features_FLE: Tensor) -> int | None:
        """Keeps features and returns the bytes written: 0 where they are there, None where the folder is full.

        Args:
            key: 64 hex digits.
            features_FLE: On the CPU, contiguous.

        Raises:
            OSError: The folder can not be written.
        """
        path, size = self.path(key), entry.num_bytes(features_FLE)
        if path.exists():
            return 0
        if not self._reserve(size):
            return None
        entry.write(path, key, features_FLE)
        return size

    def _reserve(self, size: int) -> bool:
        """Enters an entry into the total, and makes room for it where it would pass the bound."""
        if shutil.disk_usage(self.root).free < size + SPARE_BYTES:
            return False
        with self._total() as (total, put):
            if total is None or total + size > self.max_bytes:
                total = self._evict(size)
            if total + size > self.max_bytes:
                put(total)
                return False
            put(total + size)
        return True

    @contextlib.contextmanager
    def _total(self) -> Iterator[tuple[int | None, "_Put"]]:
        """Locks the folder and gives the bytes of all entries as far as they are known, and what writes them anew.

        The number may be too large, after a crash or where two wrote one entry; an eviction counts anew.
        """
        with open(self.root / "size", "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read(32)
            yield (int(text) if text.isdigit() else None), _Put(file.fileno())

    def _evict(self, size: int) -> int:
        """Deletes what was used longest ago until an entry fits below the low mark, and returns the bytes that stay.

        Entries vanish under processes that read them; those have the file open, or compute the features again.
        """
        found = sorted(self._scan())
        total = sum(held for _, held, _ in found)
        before, deleted = total, 0
        if total + size > self.max_bytes:
            for used, held, path in found:
                if used >= self.started or total + size <= LOW * self.max_bytes:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                total -= held
                deleted += 1
        if deleted:
            log.info("vit_cache: deleted %d entries, %.1f GiB", deleted, (before - total) / 2**30)
        return total

    def _scan(self) -> Iterator[tuple[float, int, str]]:
        """Yields time of use, bytes and path of each entry of every tower; removes what killed processes left."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                if name.endswith(_SUFFIX):
                    yield status.st_mtime, status.st_size, path
                elif name.endswith(entry.STAGED) and time.time() - status.st_mtime > ABANDONED_S:
                    with contextlib.suppress(OSError):
                        os.unlink(path)


@dataclass(frozen=True, slots=True)
class _Put:
    """Replaces the number in an open file."""

    handle: int

    def __call__(self, total: int) -> None:
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, str(total).encode(), 0)
