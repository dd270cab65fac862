"""A progress bar where a person looks on, a line now and then where a log file does."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_EVERY_S = 10.0


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many more are done.

    Args:
        title: What is being counted.
        total: All of it.
        done: What an earlier run has done already.
    """
    if not sys.stderr.isatty():
        yield _lines(title, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda number: bar.advance(task, number)


def _lines(title: str, total: int, done: int) -> Callable[[int], None]:
    count, told = done, time.monotonic()

    def advance(number: int) -> None:
        nonlocal count, told
        count = min(count + number, total)
        if time.monotonic() - told > _EVERY_S:
            told = time.monotonic()
            log.info("%s: %s of %s rows", title, f"{count:,}", f"{total:,}")

    return advance
