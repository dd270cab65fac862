"""The report on the console, and as report.csv."""

import csv
from collections.abc import Sequence
from pathlib import Path

from harness.logging.table import render
from harness.report import layout
from harness.report.analysis import BUDGETS, Report
from harness.report.layout import Column
from harness.report.trial import spell

MAX_ROWS = 30
"""Of a table on the console; the files have all."""


def text(report: Report) -> str:
    """Returns the leaderboard, the methods, what failed, and what to beware of."""
    found = report.comparison
    counts = ", ".join(f"{count} {state}" for state, count in sorted(report.counts.items()))
    parts = [f"{len(report.trials)} trials: {counts}"]
    if found.board:
        parts.append(_rendered(f"cells, best first by {found.metric}", layout.leaderboard(report)))
        parts.append("\n".join(layout.notes(report)))
    if report.tuned and len(report.methods) > 1:
        parts.append(_rendered("methods, each at its best", layout.methods(report)))
    failed = [column for column in layout.failures(report) if column.name != "again"]
    if failed[0].values:
        parts.append(_rendered("failed and diverged", failed))
    if report.warnings:
        parts.append("\n".join(f"warning: {warning}" for warning in report.warnings))
    return "\n\n".join(parts)


def write_csv(report: Report, path: Path) -> None:
    """Writes a row for each trial: its axes, metrics, budget and state; numbers in full."""
    axes, metrics = report.axes, sorted({key for trial in report.trials for key in trial.values})
    figures = [key for key in BUDGETS if key != "tflop"]
    marks = {id(trial): one.letters for one in report.comparison.board for trial in one.cell.trials}
    head = ["sweep", "trial", "status", *axes, "seed", "step", *metrics, "group", *figures, "error", "command"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for trial in report.trials:
            first = [trial.sweep, trial.folder.name, trial.status, *(spell(trial.axes.get(axis)) for axis in axes)]
            measured = [trial.seed, trial.step, *(trial.values.get(key) for key in metrics), marks.get(id(trial), "")]
            costs = [trial.summary.get(key) for key in figures]
            writer.writerow([*first, *measured, *costs, trial.error, trial.command])


def _rendered(title: str, columns: Sequence[Column]) -> str:
    count = len(columns[0].values)
    rows = [[column.text(column.values[row]) for column in columns] for row in range(min(count, MAX_ROWS))]
    shown = render(title, [column.name for column in columns], rows)
    return shown if count <= MAX_ROWS else f"{shown}\nand {count - MAX_ROWS} more in the report"
