"""Counts how often a step makes the host wait for the GPU, and says where, by torch's own debug mode for it.

A wait empties the queue of kernels: the GPU then idles until the host has caught up. torch warns at each call that
waits (`torch.cuda.set_sync_debug_mode`); waits within the backward pass are told when it ends, and count with the line
that called it. What torch does not know of, such as waits inside other libraries' kernels, is not seen.
"""

import logging
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.errors import reject

log = logging.getLogger(__name__)

MESSAGE = "called a synchronizing CUDA operation"
"""How torch's warning begins."""
_SKIPPED = (str(Path(__file__)), str(Path(warnings.__file__)))


class SyncCounter:
    """Counts while `counting` lasts; each place is logged when it is first seen, and with its count at the end."""

    def __init__(self) -> None:
        """Counts nothing yet."""
        self.places: Counter[str] = Counter()
        self._count = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Turns torch's debug mode on for a while and takes its warnings; others go where they went before."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            warnings.filterwarnings("always", message=MESSAGE)
            passed_on = warnings.showwarning

            def show(message: Any, category: Any, *rest: Any, **named: Any) -> None:
                if str(message).startswith(MESSAGE):
                    self.see(_place(traceback.extract_stack()))
                else:
                    passed_on(message, category, *rest, **named)

            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for place, count in self.places.most_common():
            log.info("the host waited for the GPU %d times at %s", count, place)

    def see(self, place: str) -> None:
        """Counts one wait."""
        self._count += 1
        if place not in self.places:
            log.info("the host waits for the GPU at %s", place)
        self.places[place] += 1

    def take(self) -> int:
        """Returns the waits since the last call."""
        count, self._count = self._count, 0
        return count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what runs inside."""
        torch.cuda.set_sync_debug_mode("default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("warn")


def sync_counter(wanted: bool, accelerator: str) -> SyncCounter | None:
    """Returns a counter if one is asked for.

    Raises:
        UserError: There is no GPU to wait for.
    """
    if wanted and accelerator != "gpu":
        raise reject("trainer.debug_syncs", True, "counts waits for a GPU, and this run is on the CPU; leave it out")
    return SyncCounter() if wanted else None


def _place(stack: traceback.StackSummary) -> str:
    """Returns the line that waited, and the nearest one of this package above it."""
    frames = [frame for frame in stack if frame.filename not in _SKIPPED]
    own = next((frame for frame in reversed(frames) if "/harness/" in frame.filename), None)
    shown = [frames[-1]] if own is None or own is frames[-1] else [frames[-1], own]
    return ", from ".join(f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno} ({f.name})" for f in shown)
