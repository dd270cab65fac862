"""Decodes images and videos whole: damage in the middle of a file does not show in its header."""

import pickle
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np

from harness.cores import usable
from harness.data.account import LISTED
from harness.data.index.progress import progress
from harness.data.media.video_sampling import VideoSampling
from harness.data.row import Rows
from harness.doctor.decoder import Decoder, Task, receive, work_on
from harness.doctor.split import Split
from harness.errors import UserError
from harness.logging.table import show as show_table

SAMPLE, SAMPLE_VIDEOS = 200, 5
"""Images and videos that are decoded where not all are asked for."""
_CHUNK = 64
_PARALLEL_FROM = 1_000
"""Fewer images are decoded sooner than processes have started."""


def measure(split: Split, *, everything: bool, workers: int | None, seed: int) -> dict[str, Any]:
    """Decodes all media of the rows in use, or some at random.

    Args:
        split: With its samples.
        everything: Decode all of them, in several processes where they are many.
        workers: Processes; None: one per CPU core.
        seed: Chooses where not all are decoded.

    Returns:
        For doctor.json: how many there are, how many were decoded, and the broken ones by reason.
    """
    media = _media(split)
    chosen = media if everything else _some(media, split, seed)
    tasks: defaultdict[int, list[int]] = defaultdict(list)
    for row, place in chosen.tolist():
        tasks[row].append(place)
    work = [(row, tuple(places)) for row, places in tasks.items()]
    sampling = split.samples.encoder.text.sampling
    broken = _decode_all(split.name, split.rows, sampling, work, len(chosen), workers or usable())
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for reason, message in broken:
        reasons[reason].append(message)
    return {
        "media": len(media),
        "decoded": len(chosen),
        "broken": {reason: {"number": len(told), "first": told[:LISTED]} for reason, told in reasons.items()},
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Prints how many were decoded, and each that could not be, up to ten a reason."""
    if not found["media"]:
        return
    how = "all" if found["decoded"] == found["media"] else f"{found['decoded']:,} at random (--decode takes all)"
    print(f"{name}: decoded {how} of {found['media']:,} images and videos, {number_broken(found):,} broken")
    rows = [(reason, told) for reason, entry in found["broken"].items() for told in entry["first"]]
    if rows:
        show_table("", ("reason", "broken"), rows)
    print()


def findings(name: str, found: dict[str, Any]) -> list[str]:
    """Returns whether something could not be decoded."""
    broken = number_broken(found)
    return [f"{name}: {broken:,} of {found['decoded']:,} decoded images and videos are broken"] if broken else []


def number_broken(found: dict[str, Any]) -> int:
    """Returns how many could not be decoded."""
    return sum(entry["number"] for entry in found["broken"].values())


def _media(split: Split) -> np.ndarray:
    """Returns (M, 2) int64: row, and place in the row, of each image and video of rows in use."""
    bounds = split.samples.store.arrays.media_bounds
    used = np.unique(split.samples.row).astype(np.int64)
    counts = bounds[used + 1] - bounds[used]
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(used, counts), places], axis=1)


def _some(media: np.ndarray, split: Split, seed: int) -> np.ndarray:
    arrays = split.samples.store.arrays
    frames = arrays.media[arrays.media_bounds[media[:, 0]] + media[:, 1], 0] if len(media) else np.empty(0)
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(mask))[:number]
        for mask, number in ((frames == 0, SAMPLE), (frames > 0, SAMPLE_VIDEOS))
    ]
    return media[np.sort(np.concatenate(chosen))]


def _decode_all(
    name: str, rows: Rows, sampling: VideoSampling, work: list[Task], total: int, workers: int
) -> list[tuple[str, str]]:
    decode = Decoder(rows, sampling)
    chunks = [work[start : start + _CHUNK] for start in range(0, len(work), _CHUNK)]
    found: list[tuple[str, str]] = []
    with progress(f"{name}: decoding", total) as advance:
        if workers == 1 or total < _PARALLEL_FROM:
            for chunk in chunks:
                found += decode(chunk)
                advance(sum(len(places) for _, places in chunk))
            return found
        # Spawned, as elsewhere: a fork would inherit the locks of threads that it does not have.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), receive, (pickle.dumps(decode),))
        try:
            for chunk, broken in zip(chunks, pool.map(work_on, chunks), strict=True):
                found += broken
                advance(sum(len(places) for _, places in chunk))
        except BrokenProcessPool as error:
            raise UserError(
                "a process that decodes images died, of memory perhaps: set data.index_workers=1"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return found
