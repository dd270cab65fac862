"""The report's charts as PNGs, for papers and slides: intervals of cells, learning rates, two axes, cost, losses."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.report.analysis import Report, budget
from harness.report.axes import is_numeric, levels
from harness.report.trial import spell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CELLS, MAX_CURVES = 30, 200
"""Cells with an interval, and curves, in one picture."""

BEST, OTHER = "#c2410c", "#64748b"


def draw(report: Report, folder: Path) -> list[Path]:
    """Writes report_*.png; those without data are left out.

    Args:
        report: What was worked out.
        folder: Exists.
    """
    # Not pyplot: it would choose a backend for the process and keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for name, has_data, paint in _PICTURES:
        if not has_data(report):
            continue
        shown = [one.cell.name for one in report.comparison.board[:MAX_CELLS]]
        lines = sum(max(1.0, 0.6 * (1 + label.count("\n"))) for label in _labels(shown)) if shown else 0
        below = max((1 + label.count("\n") for label in _labels([m.name for m in report.methods[:10]])), default=0)
        height = 1.6 + 0.3 * lines if name == "intervals" else 5.0
        if name in ("rates", "losses"):
            # Of the legend, which has two columns.
            height += 0.15 * below * ((min(10, len(report.methods)) + 1) // 2)
        figure = Figure(figsize=(8, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        paint(axes, report)
        axes.spines[["top", "right"]].set_visible(False)
        written.append(folder / f"report_{name}.png")
        figure.savefig(written[-1])
    return written


def _intervals(axes: "Axes", report: Report) -> None:
    board = report.comparison.board[:MAX_CELLS]
    for place, one in enumerate(board):
        half = one.estimate.half if math.isfinite(one.estimate.half) else 0.0
        colour = BEST if place == 0 else OTHER
        axes.errorbar(one.estimate.value, place, xerr=half, fmt="o", ms=5, color=colour, capsize=3)
        if one.letters:
            axes.annotate(one.letters, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.set_yticks(range(len(board)), _labels([one.cell.name for one in board]), fontsize=8)
    axes.set_ylim(len(board) - 0.4, -0.6)
    axes.set_xlabel(f"{report.comparison.metric}, 95 % interval\ncells that share a letter can not be told apart")
    axes.grid(axis="x", alpha=0.25)


def _rates(axes: "Axes", report: Report) -> None:
    axis = _tuned(report)
    methods = report.methods[:10]
    for method, label in zip(methods, _labels([method.name for method in methods]), strict=True):
        points = sorted(method.tried, key=lambda one: float(one.cell.axes[axis]))  # type: ignore[arg-type]
        rates = [float(one.cell.axes[axis]) for one in points]  # type: ignore[arg-type]
        halves = np.nan_to_num([one.estimate.half for one in points])
        values = [one.estimate.value for one in points]
        axes.errorbar(rates, values, yerr=halves, marker="o", capsize=3, lw=1.5, label=label)
    if all(float(rate) > 0 for rate in levels(report.cells, axis)):  # type: ignore[arg-type]
        axes.set_xscale("log")
    axes.set_xlabel(axis)
    axes.set_ylabel(report.comparison.metric)
    axes.grid(alpha=0.25)
    _below(axes, report)


def _heat(axes: "Axes", report: Report) -> None:
    across, down = _pair(report)
    columns, rows = levels(report.cells, across), levels(report.cells, down)
    sign = 1 if report.comparison.lower_is_better else -1
    grid = np.full((len(rows), len(columns)), np.nan)
    # The board is sorted: the first of a pair is the best of those that differ in other axes.
    for one in reversed(report.comparison.board):
        grid[rows.index(one.cell.axes[down]), columns.index(one.cell.axes[across])] = one.estimate.value
    axes.imshow(sign * grid, cmap="Blues_r", aspect="auto", origin="lower")
    middle = np.nanmean(sign * grid)
    for (row, column), value in np.ndenumerate(grid):
        if math.isfinite(value) and grid.size <= 150:
            colour = "white" if sign * value < middle else "black"
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(columns)), [spell(value) for value in columns])
    axes.set_yticks(range(len(rows)), [spell(value) for value in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    best = "; the best of cells that differ in other axes" if len(report.axes) > 2 else ""
    axes.set_title(f"{report.comparison.metric}, darker is better{best}", fontsize=10)


def _cost(axes: "Axes", report: Report) -> None:
    board = report.comparison.board
    points = [
        (cost, one.estimate.value, one.cell.name) for one in board if (cost := budget(one.cell, _COST)) is not None
    ]
    sign = 1 if report.comparison.lower_is_better else -1
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * point[1] < sign * front[-1][1]:
            front.append(point)
    axes.scatter([cost for cost, _, _ in points], [value for _, value, _ in points], s=22, color="#94a3b8")
    axes.step([cost for cost, _, _ in front], [value for _, value, _ in front], where="post", color=BEST, ls="--")
    axes.scatter([cost for cost, _, _ in front], [value for _, value, _ in front], s=40, color=BEST, zorder=3)
    labels = _labels([name for _, _, name in front[:8]])
    for (cost, value, _), label in zip(front, labels, strict=False):
        axes.annotate(label, (cost, value), xytext=(5, 5), textcoords="offset points", fontsize=7)
    if min(cost for cost, _, _ in points) > 0 and max(points)[0] > 20 * min(points)[0]:
        axes.set_xscale("log")
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(report.comparison.metric)
    axes.margins(0.12)
    axes.grid(alpha=0.25)


def _losses(axes: "Axes", report: Report) -> None:
    from matplotlib import colormaps

    palette = colormaps["tab10"]
    place = {id(trial): n for n, m in enumerate(report.methods) for one in m.tried for trial in one.cell.trials}
    drawn = [trial for trial in report.trials if trial.loss.steps][:MAX_CURVES]
    labels = _labels([method.name for method in report.methods]) if report.methods else []
    named: set[int] = set()
    for trial in drawn:
        number = place.get(id(trial), -1)
        fresh = 0 <= number < 10 and number not in named and len(report.methods) > 1
        named.add(number)
        colour = OTHER if number < 0 else palette(number % 10)
        text = labels[number] if fresh else "_"
        axes.plot(trial.loss.steps, trial.loss.values, lw=1, alpha=0.6, color=colour, label=text)
    _below(axes, report)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("train/loss")
    axes.grid(alpha=0.25)


def _tuned(report: Report) -> str:
    return next((axis for axis in report.tuned if is_numeric(levels(report.cells, axis))), "")


def _pair(report: Report) -> tuple[str, str]:
    numeric = [axis for axis in report.axes if is_numeric(levels(report.cells, axis))]
    ordered = list(dict.fromkeys([*filter(None, [_tuned(report)]), *numeric, *report.axes]))
    return ordered[0], ordered[1]


def _labels(names: Sequence[str]) -> list[str]:
    """Returns names without what all of them say, on several lines where they are long."""
    parts: list[list[str]] = [name.split(", ") for name in names]
    said = set(parts[0] if parts else ()).intersection(*parts[1:]) if len(parts) > 1 else set()
    told = [", ".join(part for part in own if part not in said) for own in parts]
    return [textwrap.fill(own or name, 48, break_on_hyphens=False) for own, name in zip(told, names, strict=True)]


def _below(axes: "Axes", report: Report) -> None:
    """Puts the legend below the chart, where it hides nothing."""
    if len(report.methods) > 1:
        axes.figure.legend(loc="outside lower left", frameon=False, fontsize=7, ncols=2)  # type: ignore[call-arg]


_COST = "trainable_parameters"

_PICTURES: list[tuple[str, Callable[[Report], bool], Callable[["Axes", Report], None]]] = [
    ("intervals", lambda report: bool(report.comparison.board), _intervals),
    ("rates", lambda report: bool(_tuned(report)) and bool(report.methods), _rates),
    ("heat", lambda report: len(report.axes) > 1 and bool(report.comparison.board), _heat),
    ("cost", lambda report: any(budget(one.cell, _COST) for one in report.comparison.board), _cost),
    ("losses", lambda report: any(trial.loss.steps for trial in report.trials), _losses),
]
"""Name, whether there is something to draw, and what draws it."""
