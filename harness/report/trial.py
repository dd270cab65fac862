"""One trial as a report sees it, and the cell that it belongs to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Value = str | int | float | bool | None
"""Of an axis."""

COMPLETED = "completed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A metric over optimiser steps, thinned, finite values only."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """What the last validation found of each row, ordered by origin."""

    origins: tuple[str, ...]
    numerator: np.ndarray
    """(I,) float64: summed loss, or correctness."""
    weight: np.ndarray
    """(I,) float64: supervised tokens, or ones. The metric is the sum of numerators over the sum of weights."""


@dataclass(kw_only=True, slots=True)
class Trial:
    """A run folder, read as far as it is written."""

    folder: Path
    sweep: str
    """Name of the folder that it lies in."""
    status: str
    """As in status.json; `killed` where no process is left, `waiting` where none has begun."""
    config: dict[str, Any]
    """Flat, without what changes no result; empty where config.yaml can not be read."""
    overrides: dict[str, Value]
    """Of the command line, by key."""
    seed: int | None
    command: str
    """Runs it again."""
    step: int
    """Last one in metrics.jsonl."""
    max_steps: int | None
    values: dict[str, float]
    """Metrics of the last validation; those of a trial that runs are of its last so far."""
    best: dict[str, Any]
    """Metric, value and step of the best validation, as in summary.json."""
    monitor: str
    summary: dict[str, Any]
    environment: dict[str, Any]
    loss: Curve
    """Training loss."""
    validation: dict[str, Curve]
    items: dict[str, Items]
    """By metric."""
    error: str | None
    axes: dict[str, Value] = field(default_factory=dict)
    """What it has on the axes of the report."""

    @property
    def name(self) -> str:
        """Sweep and folder."""
        return f"{self.sweep}/{self.folder.name}"

    @property
    def completed(self) -> bool:
        """Whether it counts in comparisons."""
        return self.status == COMPLETED


@dataclass(kw_only=True, slots=True)
class Cell:
    """Trials of one config, which differ in their seed alone."""

    axes: dict[str, Value]
    trials: list[Trial]

    @property
    def name(self) -> str:
        """The values of its axes."""
        return ", ".join(f"{short(key)}={spell(value)}" for key, value in self.axes.items()) or "all"

    @property
    def completed(self) -> list[Trial]:
        """The trials that count, one a seed, in the order of seeds: where a seed ran twice, the first."""
        first: dict[int | None, Trial] = {}
        for trial in self.trials:
            if trial.completed:
                first.setdefault(trial.seed, trial)
        return [first[seed] for seed in sorted(first, key=lambda seed: (seed is None, seed))]

    def scores(self, metric: str) -> dict[int | None, float]:
        """Returns the metric of each seed that has it."""
        return {trial.seed: trial.values[metric] for trial in self.completed if metric in trial.values}

    def mean(self, figure: Callable[[dict[str, Any]], float | None]) -> float | None:
        """Returns the mean of a figure, told from summary.json, over the completed trials that have it."""
        found = [value for trial in self.completed if isinstance(value := figure(trial.summary), int | float)]
        return float(np.mean(found)) if found else None


def short(key: str) -> str:
    """Returns the last part of a dotted key."""
    return key.rsplit(".", 1)[-1]


def spell(value: Value) -> str:
    """Returns a value as one would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
