"""Progress of training: a live bar on a terminal, else a line at most every ten seconds; train.log gets the lines."""

import logging
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from harness.logging.setup import FILE_ONLY

log = logging.getLogger(__name__)

MAX_RATES = 4
"""Learning rates that a line spells out; a run with one for each layer has dozens."""


class Progress:
    """Shows how far a run is, how fast it goes, and its latest figures.

    Args:
        total_steps: Optimiser steps of the whole run.
        initial_step: Steps done before, by a run that this one resumes.
        bar: Whether to draw a live bar; None: where standard error is a terminal. Ranks other than 0 pass False.
        every_seconds: Least time between two lines.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        *,
        bar: bool | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._step = initial_step
        self._every_seconds = every_seconds
        self._clock = clock
        self._figures: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._last_line = -float("inf")
        self._bar = _make_bar() if (sys.stderr.isatty() if bar is None else bar) else None

    def __enter__(self) -> "Progress":
        """Starts the bar."""
        if self._bar:
            self._task = self._bar.add_task("", total=self._total, completed=self._step, figures="", left="-:--:--")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it stands."""
        if self._bar:
            self._bar.stop()

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Takes note that `step` optimiser steps are done.

        Args:
            step: Steps done, those of a resumed run included.
            row: What was measured at this step, under the names of metrics.jsonl; may be empty.
        """
        self._step = step
        self._figures |= row
        if self._first is None:
            # The first step compiles, allocates and fills caches: it says nothing about the ones to come.
            self._first = step, self._clock()
        if self._bar:
            self._bar.update(self._task, completed=step, figures=describe(self._figures), left=self._left())
        if row and self._is_due(step, row):
            self._last_line = self._clock()
            text = f"step {step}/{self._total} {describe(row)} left {self._left()}"
            log.info(text, extra={FILE_ONLY: self._bar is not None})

    def _is_due(self, step: int, row: Mapping[str, float]) -> bool:
        if step >= self._total or any(key.startswith("val/") for key in row):
            return True
        return self._clock() - self._last_line >= self._every_seconds

    def _left(self) -> str:
        assert self._first is not None
        first_step, first_time = self._first
        if self._step >= self._total:
            return "0:00:00"
        if self._step == first_step:
            return "-:--:--"
        seconds = (self._clock() - first_time) / (self._step - first_step) * (self._total - self._step)
        return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"


def describe(row: Mapping[str, float]) -> str:
    """Spells a row in one line: loss, learning rates, speed, waiting for data, utilisation, validation."""
    parts = [template(row[key]) for key, template in _TRAIN.items() if key in row]
    rates = _rates(row)
    if rates:
        parts.insert(1 if "train/loss" in row else 0, rates)
    parts += [f"{key} {value:.4g}" for key, value in row.items() if key.startswith("val/")]
    return " ".join(parts)


_TRAIN: dict[str, Callable[[float], str]] = {
    "train/loss": lambda value: f"loss {value:.4g}",
    "perf/tokens_per_s": lambda value: f"{value:,.0f} tok/s",
    "perf/data_wait_fraction": lambda value: f"wait {100 * value:.1f} %",
    "perf/mfu": lambda value: f"mfu {100 * value:.1f} %",
}


def _rates(row: Mapping[str, float]) -> str:
    """Returns `lr 1.0e-03`, the group's name behind each rate where rates differ, the range where there are many."""
    prefix = "train/lr/"
    rates = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
    if len(set(rates.values())) <= 1:
        return f"lr {next(iter(rates.values())):.1e}" if rates else ""
    if len(rates) > MAX_RATES:
        return f"lr {min(rates.values()):.1e} to {max(rates.values()):.1e}"
    return "lr " + " ".join(f"{value:.1e} ({name})" for name, value in rates.items())


def _make_bar() -> Bar:
    figures = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Bar(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("left {task.fields[left]}"),
        # A narrow terminal cuts the end of the figures, and nothing else.
        TextColumn("{task.fields[figures]}", markup=False, table_column=figures),
        console=Console(stderr=True),
        expand=True,
    )
