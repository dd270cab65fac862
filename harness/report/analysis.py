"""All that a report shows, worked out once: the console table, the CSV, the pictures and the page only lay it out."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import reject
from harness.report.axes import cells_of, find_axes, levels
from harness.report.choice import TUNED, Method, edges, methods_of
from harness.report.compare import MAX_COMPARED, Comparison, Ranked, compare
from harness.report.read import Study, read_study, read_trials
from harness.report.trial import Cell, Trial, short
from harness.trainer.standard import badness

UNEQUAL = 0.05
"""Share by which a budget may differ among compared cells without a warning."""

BUDGETS = {
    "trainable_parameters": "trainable parameters",
    "tokens": "tokens",
    "tflop": "TFLOP",
    "wall_time_s": "seconds after the first step",
    "peak_allocated_gib": "peak GiB",
}
"""Figures of a cell that a fair comparison holds equal, or shows."""


@dataclass(kw_only=True, slots=True)
class Report:
    """What the trials of some folders say together."""

    study: Study
    folders: list[Path]
    trials: list[Trial]
    cells: list[Cell]
    axes: list[str]
    tuned: list[str]
    """Axes over which a method is taken at its best."""
    comparison: Comparison
    methods: list[Method]
    importance: list[tuple[str, float]]
    """Share of the variance among cell means that an axis' own means have, the largest first; then the rest."""
    warnings: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return dict(Counter(trial.status for trial in self.trials))


def analyse(folders: Sequence[Path], *, metric: str | None = None, tuned: Sequence[str] | None = None) -> Report:
    """Reads folders and works the report out.

    Args:
        folders: Of sweeps, or of runs.
        metric: To compare by; None takes the study's, else the one that most trials monitor.
        tuned: Axes over which a method is taken at its best; None takes the learning rates.

    Raises:
        UserError: A folder is missing or holds no run; no trial has the metric, or no axis is named so.
    """
    trials, study = read_trials(folders), read_study(folders)
    axes = find_axes(trials, study.axes)
    cells = cells_of(trials)
    chosen = metric or study.metric or Counter(trial.monitor for trial in trials).most_common(1)[0][0]
    measured = sorted({key for trial in trials for key in trial.values})
    if metric is not None and metric not in measured:
        raise reject("--metric", metric, f"no trial has it; there are {', '.join(measured) or 'none yet'}")
    if unknown := [axis for axis in tuned or () if axis not in axes]:
        raise reject("--tuned", unknown[0], f"is no axis; there are {', '.join(axes) or 'none'}")
    lower = study.mode == "min" if study.mode and chosen == study.metric else badness(chosen, 1.0) > 0
    found = compare(cells, chosen, lower_is_better=lower)
    over = [axis for axis in axes if axis in (TUNED if tuned is None else tuned)]
    methods = methods_of(found, over)
    return Report(
        study=study,
        folders=list(folders),
        trials=trials,
        cells=cells,
        axes=axes,
        tuned=over,
        comparison=found,
        methods=methods,
        importance=importance(found.board, axes),
        warnings=_warnings(found, methods, axes, over),
    )


def budget(cell: Cell, key: str) -> float | None:
    """Returns the mean of a figure of BUDGETS over the completed trials of a cell."""
    return cell.mean(_FIGURES.get(key, lambda summary: summary.get(key)))


def _seconds(summary: dict[str, Any]) -> float | None:
    """Leaves out the way to the first step: in a pool of warm processes the first trial goes it for all others."""
    whole = summary.get("wall_time_s")
    return None if whole is None else whole - (summary.get("startup_time_s") or 0.0)


def _tflop(summary: dict[str, Any]) -> float | None:
    rate, step, steps = (summary.get(key) for key in ("model_tflop_per_s", "step_time_s", "steps"))
    return None if rate is None or step is None or steps is None else rate * step * steps


_FIGURES = {"wall_time_s": _seconds, "tflop": _tflop}
"""Those of BUDGETS that do not stand in summary.json as they are."""


def importance(board: Sequence[Ranked], axes: Sequence[str]) -> list[tuple[str, float]]:
    """Splits the variance among cell means: what the means of each axis' values have of it, and what is left.

    Over a whole grid this is the functional analysis of variance of first order (Hutter et al. 2014, ICML), and the
    rest is what axes do together. Where a grid has holes shares may overlap. An axis of many values, as a random search
    has, is taken in up to eight groups of neighbours.
    """
    values = np.array([one.estimate.value for one in board])
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    if total == 0 or len(values) < 3:
        return []
    shares = []
    for axis in axes:
        place = {repr(value): number for number, value in enumerate(levels([one.cell for one in board], axis))}
        group = np.array([place[repr(one.cell.axes.get(axis))] for one in board])
        if len(place) > max(8, len(values) // 2):
            group = group * 8 // len(place)
        means = {number: values[group == number].mean() for number in set(group.tolist())}
        shares.append((axis, float(sum((means[number] - values.mean()) ** 2 for number in group.tolist()) / total)))
    shares.sort(key=lambda pair: -pair[1])
    return [*shares, ("together, or noise", max(0.0, 1 - sum(share for _, share in shares)))]


def _warnings(found: Comparison, methods: Sequence[Method], axes: Sequence[str], tuned: Sequence[str]) -> list[str]:
    board = found.board
    if not board:
        return ["no trial has completed: nothing is compared yet"]
    said = []
    if all(len(one.seeds) < 2 for one in board):
        said.append("one seed a cell: how much seeds change is unknown, and intervals, where shown, hold rows alone")
    elif any(len(one.seeds) != len(board[0].seeds) for one in board):
        lacks = any(len(one.seeds) < len({trial.seed for trial in one.cell.trials}) for one in board)
        reason = ": what did not complete is missing from their means" if lacks else ""
        said.append(f"cells have unequally many seeds{reason}")
    if not found.by_item:
        said.append("validation rows are not kept, or not the same for all: intervals hold the noise of seeds alone")
    if len(board) > MAX_COMPARED:
        said.append(f"only the best {MAX_COMPARED} of {len(board)} cells are tested pair by pair and have letters")
    others = [axis for axis in axes if axis not in tuned]
    said += [f"best on the edge of the grid: {edge}; try values beyond" for edge in edges(board[0], board, others)]
    at_edge: dict[str, list[str]] = {}
    for method in methods:
        for edge in method.edges:
            at_edge.setdefault(edge, []).append(method.name)
    for edge, names in at_edge.items():
        who = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        said.append(f"best on the edge of the grid: {edge} ({who}); try values beyond")
    said += _choice_warnings(methods)
    return said + _budget_warnings([method.chosen.cell for method in methods])


def _choice_warnings(methods: Sequence[Method]) -> list[str]:
    said = []
    tried = {len(method.tried) for method in methods}
    if len(tried) > 1:
        said.append(f"methods were tuned on unequal budgets: between {min(tried)} and {max(tried)} settings each")
    if max(tried) > 1:
        text = "each method's best setting was chosen and measured on the same runs, which flatters it"
        blind = all(math.isnan(method.honest) for method in methods)
        said.append(f"{text}: {'give two seeds or more to see how much' if blind else 'see the column honest'}")
    return said


def _budget_warnings(cells: Sequence[Cell]) -> list[str]:
    said = []
    for key, name in BUDGETS.items():
        figures = [figure for cell in cells if (figure := budget(cell, key))]
        if len(figures) > 1 and max(figures) > (1 + UNEQUAL) * min(figures):
            least, most = min(figures), max(figures)
            shown = [f"{figure:,.0f}" if most >= 1000 else f"{figure:.4g}" for figure in (least, most)]
            said.append(f"unequal {name}: {' to '.join(shown)}, {100 * (most / least - 1):,.0f} % apart")
    return said


def label(axis: str, axes: Sequence[str]) -> str:
    """Returns the last part of an axis' key, or all of it where two end alike."""
    return short(axis) if [short(other) for other in axes].count(short(axis)) == 1 else axis
