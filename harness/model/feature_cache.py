"""The training process's side of the feature cache: keeps what the tower computes, and counts.

Features go to page-locked memory by a copy on a side stream, and from there to the disk by a thread. The step waits for
neither: where more than `MAX_PENDING` bytes wait, features are dropped, counted, and computed again next time.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.data.features.lookup import Lookup
from harness.model.features import Stage

if TYPE_CHECKING:
    from harness.data.batch import Cached

log = logging.getLogger(__name__)

MAX_PENDING = 1 << 30
"""Bytes that may wait for the disk: ten packs of 8,192 tokens of a 4B model."""
_SPEED = "seconds_per_token.json"


@dataclass(slots=True)
class Counts:
    """What the cache did in a span of training and validation, on this rank."""

    hit_tokens: int = 0
    """Visual tokens whose features were found."""
    missed_tokens: int = 0
    damaged: int = 0
    """Entries that were deleted, and computed again."""
    read_bytes: int = 0
    written_bytes: int = 0
    dropped: int = 0
    """Images and videos that were not kept: the disk was too slow, or full, or the bound was reached."""

    def add(self, other: "Counts") -> None:
        """Adds another span, in place."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def hit_rate(self) -> float:
        """Returns the share of visual tokens whose features were found; 0 where there were none."""
        return self.hit_tokens / max(self.hit_tokens + self.missed_tokens, 1)


@dataclass(slots=True)
class _Speed:
    """Seconds that the tower takes for a visual token, measured without waiting for a GPU."""

    tokens: int = 0
    seconds: float = 0.0
    before: float | None = None
    """As an earlier process measured it."""
    _events: list[tuple[Any, Any, int]] = field(default_factory=list)
    _calls: int = 0

    def add(self, tokens: int, seconds: float) -> None:
        """Adds a call; the first one holds the start of libraries and counts only while it is alone."""
        self._calls += 1
        if self._calls == 2:
            self.tokens, self.seconds = 0, 0.0
        self.tokens += tokens
        self.seconds += seconds

    def add_events(self, start: Any, end: Any, tokens: int) -> None:
        """Adds a call between two CUDA events, which are read when they are through."""
        self._events.append((start, end, tokens))

    def per_token(self) -> float | None:
        """Returns the seconds for a token, or None where nobody has measured it."""
        while self._events and self._events[0][1].query():
            start, end, tokens = self._events.pop(0)
            self.add(tokens, start.elapsed_time(end) / 1000)
        return self.seconds / self.tokens if self.tokens else self.before


class FeatureCache:
    """Stands on the vision tower as `feature_cache` while a run trains."""

    def __init__(self, lookup: Lookup, stage: Stage, merge_unit: int) -> None:
        """Starts the thread.

        Args:
            lookup: The reading side, of which the writer shares store and keys.
            stage: Where in the tower features are taken.
            merge_unit: Patches of a visual token.
        """
        self.lookup = lookup
        self.stage = stage
        self.total = Counts()
        self._merge_unit = merge_unit
        self._interval = Counts()
        self._written = Counts()
        self._speed = _Speed(before=self._known_speed())
        self._queue: queue.SimpleQueue[tuple[list[tuple[str | None, int]], Tensor, Any] | None] = queue.SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._broken = False
        self._stream: Any = None
        self._thread = threading.Thread(target=self._write_all, name="vit_cache", daemon=True)
        self._thread.start()

    @contextmanager
    def timed(self, pixels_PD: Tensor) -> Iterator[None]:
        """Measures a call of the tower on some patches."""
        tokens = len(pixels_PD) // self._merge_unit
        if pixels_PD.device.type == "cpu":
            begun = time.perf_counter()
            yield
            self._speed.add(tokens, time.perf_counter() - begun)
            return
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._speed.add_events(start, end, tokens)

    def count(self, cached: "Cached") -> None:
        """Counts a batch."""
        self._interval.hit_tokens += cached.num_hit
        self._interval.missed_tokens += sum(tokens for _, tokens in cached.missed)
        self._interval.damaged += cached.num_damaged
        if cached.features is not None:
            self._interval.read_bytes += cached.features.numel() * cached.features.element_size()

    def keep(self, missed: list[tuple[str | None, int]], features_MLE: Tensor) -> None:
        """Hands features over to the thread, without waiting for it or for the device.

        Args:
            missed: Key and visual tokens of each image and video.
            features_MLE: Theirs, one behind the other; nobody may change them.
        """
        size = features_MLE.numel() * features_MLE.element_size()
        with self._lock:
            room = not self._broken and self._pending + size <= MAX_PENDING
            self._pending += size if room else 0
        if not room:
            self._interval.dropped += len(missed)
            return
        self._queue.put((missed, *self._to_host(features_MLE)))

    def take(self) -> dict[str, float]:
        """Returns `perf/...` metrics since the last call, for metrics.jsonl."""
        with self._lock:
            written, self._written = self._written, Counts()
        interval, self._interval = self._interval, Counts()
        interval.add(written)
        self.total.add(interval)
        return {
            "perf/vit_cache_hit_rate": interval.hit_rate(),
            "perf/vit_cache_read_gib": interval.read_bytes / 2**30,
            "perf/vit_cache_written_gib": interval.written_bytes / 2**30,
            "perf/vit_cache_saved_s": interval.hit_tokens * (self._speed.per_token() or 0.0),
        }

    def summary(self) -> dict[str, Any]:
        """Returns what it did in this process, for summary.json."""
        self.take()
        total, per_token = self.total, self._speed.per_token()
        return {
            "stage": self.stage.name,
            "hit_rate": total.hit_rate(),
            "hit_tokens": total.hit_tokens,
            "missed_tokens": total.missed_tokens,
            "read_gib": total.read_bytes / 2**30,
            "written_gib": total.written_bytes / 2**30,
            "saved_s": None if per_token is None else total.hit_tokens * per_token,
            "dropped": total.dropped,
            "damaged": total.damaged,
        }

    def close(self) -> None:
        """Waits until all that was handed over is on the disk, and ends the thread."""
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join()
        if (per_token := self._speed.per_token()) is not None and self._speed.tokens:
            try:
                (self.lookup.store.folder / _SPEED).write_text(json.dumps(per_token), encoding="utf-8")
            except OSError as error:
                log.warning("vit_cache: %s", error)

    def _known_speed(self) -> float | None:
        try:
            return float(json.loads((self.lookup.store.folder / _SPEED).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def _to_host(self, features_MLE: Tensor) -> tuple[Tensor, Any]:
        """Returns features in host memory, and the event behind which they are there."""
        if features_MLE.device.type == "cpu":
            return features_MLE, None
        if self._stream is None:
            self._stream = torch.cuda.Stream(features_MLE.device)
        host_MLE = torch.empty(features_MLE.shape, dtype=features_MLE.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(features_MLE.device))
        with torch.cuda.stream(self._stream):
            host_MLE.copy_(features_MLE, non_blocking=True)
            event = self._stream.record_event()
        # Its memory must not be given to another tensor while the side stream reads it.
        features_MLE.record_stream(self._stream)
        return host_MLE, event

    def _write_all(self) -> None:
        while (work := self._queue.get()) is not None:
            missed, host_MLE, event = work
            if event is not None:
                event.synchronize()
            for (key, _), features_FLE in zip(missed, host_MLE.split([n for _, n in missed]), strict=True):
                self._write(key, features_FLE)
            with self._lock:
                self._pending -= host_MLE.numel() * host_MLE.element_size()

    def _write(self, key: str | None, features_FLE: Tensor) -> None:
        size = None
        if key is not None and not self._broken:
            try:
                size = self.lookup.store.write(key, features_FLE)
                if size is None:
                    self._give_up("the folder is full of what this run uses, or the disk is")
            except Exception as error:  # the run goes on without it, whatever the file system says
                self._give_up(str(error))
        with self._lock:
            self._written.written_bytes += size or 0
            self._written.dropped += size is None

    def _give_up(self, reason: str) -> None:
        self._broken = True
        log.warning("vit_cache: no more features are kept: %s", reason)
