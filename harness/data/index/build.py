"""Tokenises all rows, in several processes where there are many, and keeps the result for the next run.

The work is cut into chunks of rows. With `data.cache_dir` each finished chunk is a folder on disk, so that a run that
was interrupted goes on where it stopped; the whole is kept under a key made of the rows' content and every setting that
the tokens depend on. Media files are checked by size and time of change each time. Processes are spawned: a fork would
inherit the locks of threads that it does not have.
"""

import fcntl
import gc
import hashlib
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from harness.cores import usable
from harness.data.index import store
from harness.data.index.progress import progress
from harness.data.index.store import Store
from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef
from harness.data.row import Row, Rows
from harness.data.row_error import RowError
from harness.data.template.text import TextEncoder, TextSample
from harness.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 4_000
"""Rows of a chunk: a second or so of work."""
PARALLEL_FROM = 5 * CHUNK
"""Fewer rows are done sooner than processes have started and imported the tokenizer."""
_FORMAT = "2"
"""Part of every key: another number for another meaning of the arrays."""


def build(
    rows: Rows, encoder: TextEncoder, *, what: str, key: str, cache: Path | None, workers: int | None, stop: bool
) -> Store:
    """Returns the tokenised rows, from the cache where they are there and still right.

    Args:
        rows: All of a split.
        encoder: Template and tokenizer.
        what: Name of the split, for messages.
        key: Hash of the encoder's settings.
        cache: Folder of stores; None keeps everything in memory.
        workers: Processes; None: one per CPU core.
        stop: End with the first row that can not be used.

    Raises:
        UserError: Such a row, with `stop`; or a process died.
    """
    if len(rows) <= CHUNK:
        return _checked(_encode(rows, encoder, range(len(rows))), stop)
    if cache is None:
        with tempfile.TemporaryDirectory() as scratch:
            # What is mapped stays readable when its files are unlinked.
            return _build(rows, encoder, Path(scratch) / "store", what=what, workers=workers, stop=stop)
    name = hashlib.sha256(f"{_FORMAT} {rows.fingerprint} {key}".encode()).hexdigest()[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock"):
        folder = cache / name
        if folder.is_dir():
            found = store.load(folder)
            if (reason := _outdated(found, rows, encoder)) is None:
                log.info("%s: %s tokenised rows from %s", what, f"{len(found):,}", folder)
                return _checked(found, stop)
            log.info("%s: tokenising again: %s", what, reason)
            shutil.rmtree(folder)
        # Chunks that an interrupted run kept may hold rows that it was allowed to skip.
        return _checked(_build(rows, encoder, folder, what=what, workers=workers, stop=stop), stop)


def _build(rows: Rows, encoder: TextEncoder, folder: Path, *, what: str, workers: int | None, stop: bool) -> Store:
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    numbers = [range(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    chunks = [partial / f"{part.start:012d}" for part in numbers]
    missing = [(part, chunk) for part, chunk in zip(numbers, chunks, strict=True) if not chunk.is_dir()]
    with progress(f"{what}: tokenising", len(rows), len(rows) - CHUNK * len(missing)) as advance:
        _run(rows, encoder, missing, workers or usable(), stop, lambda: advance(CHUNK))
    whole = folder.with_suffix(".whole")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    store.merge(chunks, whole)
    whole.rename(folder)
    shutil.rmtree(partial)
    return store.load(folder)


def _run(
    rows: Rows,
    encoder: TextEncoder,
    missing: list[tuple[range, Path]],
    workers: int,
    stop: bool,
    advance: Callable[[], None],
) -> None:
    """Makes the missing chunks; a row's error goes first by row number, whatever the processes' order."""
    if workers == 1 or len(missing) * CHUNK < PARALLEL_FROM:
        for numbers, chunk in missing:
            _keep(_encode(rows, encoder, numbers), chunk, stop)
            advance()
        return
    payload = pickle.dumps((rows, encoder, stop))
    pool = ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn"), _receive, (payload,))
    try:
        for error in pool.map(_work, *zip(*missing, strict=True)):
            if error is not None:
                raise error
            advance()
    except BrokenProcessPool as error:
        raise UserError("a process that tokenises rows died, of memory perhaps: set data.index_workers=1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_received: tuple[Rows, TextEncoder, bool]


def _receive(payload: bytes) -> None:
    global _received
    # Each process has its share of the cores already; the tokenizer's own threads would only get in the way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _received = pickle.loads(payload)
    # What is there now stays: looking through it for garbage over and over took a fifth of the time.
    gc.freeze()


def _work(numbers: range, chunk: Path) -> RowError | None:
    rows, encoder, stop = _received
    try:
        _keep(_encode(rows, encoder, numbers), chunk, stop)
    except RowError as error:
        return error
    return None


def _keep(part: Store, chunk: Path, stop: bool) -> None:
    """Writes a chunk under another name first: a folder with the right name is whole."""
    _checked(part, stop)
    staged = chunk.with_suffix(".staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    part.save(staged)
    staged.rename(chunk)


def _encode(rows: Rows, encoder: TextEncoder, numbers: range) -> Store:
    """Tokenises a chunk of rows."""
    results: list[TextSample | RowError | None] = []
    good: list[Row] = []
    files: list[tuple[str, tuple[int, int]]] = []
    for number in numbers:
        try:
            row = rows[number]
            stamps = _stamps(row)
        except RowError as error:
            results.append(error)
        else:
            results.append(None)
            good.append(row)
            files += stamps
    encoded = iter(encoder.encode_many(good))
    samples = [next(encoded) if result is None else result for result in results]
    return store.gather(samples, files, numbers.start)


def _stamps(row: Row) -> list[tuple[str, tuple[int, int]]]:
    """Returns path, size and time of change of each media file that a row names."""
    frames = [image for video in row.videos if isinstance(video.source, tuple) for image in video.source]
    refs: list[ImageRef | VideoRef] = [*row.images, *row.videos, *frames]
    stamped = ((ref.path, ref.stamp()) for ref in refs)
    return [(path, stamp) for path, stamp in stamped if path is not None and stamp is not None]


def _checked(found: Store, stop: bool) -> Store:
    if stop and found.errors:
        raise found.errors[min(found.errors)]
    return found


def _outdated(found: Store, rows: Rows, encoder: TextEncoder) -> str | None:
    """Returns why a kept store is no longer right: a media file changed, or an unusable row can be used now."""
    for path, stamp in zip(found.paths, found.arrays.stamps.tolist(), strict=True):
        try:
            status = os.stat(path)
        except OSError:
            return f"{path} is gone"
        if [status.st_size, status.st_mtime_ns] != stamp:
            return f"{path} changed"
    for number, error in found.errors.items():
        try:
            again = encoder.encode_many([rows[number]])[0]
        except RowError as same:
            again = same
        if not isinstance(again, RowError) or str(again) != str(error):
            return f"{error.origin} is another row than it was"
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time build a store; the others find it done."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
