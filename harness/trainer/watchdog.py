"""Ends a run that stands still: a step that hangs, or a worker whose batch never comes.

A thread counts the seconds since the training loop last moved on. At the limit it writes the stacks of all threads of
this process and of its workers (Python's `faulthandler`, a signal to each worker), tells the run's folder, and ends the
process without asking the thread that hangs: nothing is cleaned up, as after a kill, which checkpoints survive. Ranks
hang together; the first one at its limit reports, and who started them has the others write their stacks
(`harness.experiment.ranks`).

Its seconds are those of this thread's own ticks, so a process that was stopped and goes on has not hung. Code that
keeps Python's lock for ever is not seen.
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.errors import EXIT_HUNG

SIGNAL = signal.SIGUSR2
"""Makes a process of a run write its stacks and go on."""
_TICK_S = 1.0
_WORKERS_S = 1.0
"""That workers have for writing their stacks."""
_LAST_S = 10.0
"""From the limit to the end, whatever hangs on the way: a disk, a lock of the logging."""


class HungError(RuntimeError):
    """The run stood still for longer than `trainer.watchdog_s`."""


@contextmanager
def writes_stacks(path: Path) -> Iterator[IO[str]]:
    """Lets `SIGNAL` append the stacks of all threads to a file, in this process and in those that it forks.

    Args:
        path: Of the rank's log.
    """
    with path.open("a", encoding="utf-8") as file:
        faulthandler.register(SIGNAL, file, all_threads=True, chain=False)
        try:
            yield file
        finally:
            faulthandler.unregister(SIGNAL)


class Watchdog:
    """Is told of every sign of life; waits while it is paused, and before the first sign."""

    def __init__(self, limit_s: float | None, stacks: IO[str], on_hang: Callable[[HungError], None]) -> None:
        """Watches nothing yet.

        Args:
            limit_s: Seconds without a sign of life that end the process; None: none do.
            stacks: From `writes_stacks`.
            on_hang: Tells the run's folder; called in a thread, right before the process ends.
        """
        self._limit_s = limit_s
        self._stacks = stacks
        self._on_hang = on_hang
        self._idle_s = 0.0
        self._timed = False
        self._doing = ""
        self._over = threading.Event()

    def start(self) -> None:
        """Starts the thread, if there is a limit."""
        if self._limit_s is not None:
            threading.Thread(target=self._run, args=(self._limit_s,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()

    def begin(self, doing: str) -> None:
        """Times from now on.

        Args:
            doing: What has to be over within the limit, for the message.
        """
        self._idle_s, self._doing, self._timed = 0.0, doing, True

    def pause(self) -> None:
        """Times nothing until `begin`."""
        self._timed = False

    def _run(self, limit_s: float) -> None:
        tick_s = min(_TICK_S, limit_s / 10)
        before = time.monotonic()
        while not self._over.wait(tick_s):
            now = time.monotonic()
            self._idle_s, before = self._idle_s + min(now - before, 2 * tick_s), now
            if self._timed and self._idle_s > limit_s:
                self._end(HungError(f"{self._doing} took more than {limit_s:g} s (trainer.watchdog_s)"))

    def _end(self, error: HungError) -> None:
        last = threading.Timer(_LAST_S, _leave)
        last.daemon = True
        last.start()
        try:
            self._write_stacks(error)
            self._on_hang(error)
        finally:
            _leave()

    def _write_stacks(self, error: HungError) -> None:
        print(f"process {os.getpid()}: {error}", file=self._stacks, flush=True)
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        workers = multiprocessing.active_children()
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                print(f"worker {worker.name}, process {worker.pid}:", file=self._stacks, flush=True)
                os.kill(worker.pid, SIGNAL)
                time.sleep(_WORKERS_S / len(workers))


def _leave() -> None:
    """Ends the process and its workers; nothing is joined, for what hangs may hold any lock."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(EXIT_HUNG)
