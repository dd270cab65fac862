"""report.html: one file with its data, styles and script inside; it asks nothing of a network.

All text of trials is escaped: names, overrides and errors come from files that anyone may have written.
"""

import datetime
import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from harness.report import layout
from harness.report.analysis import BUDGETS, Report, budget, label
from harness.report.axes import is_numeric, levels, order
from harness.report.layout import Column
from harness.report.trial import Curve, Trial, Value

POINTS = 60
"""Of a curve in the page."""

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}</style></head><body>
"""


def render(report: Report) -> str:
    """Returns the whole page."""
    title = report.study.name or ", ".join(folder.resolve().name for folder in report.folders)
    own = files("harness.report")
    parts = [_HEAD.format(title=html.escape(title), css=own.joinpath("page.css").read_text(encoding="utf-8"))]
    parts += [_opening(report, title), _leaderboard(report), _charts(report), _trials(report), _environments(report)]
    # Within a script element only "<" could end it.
    content = json.dumps(_data(report), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts.append(f'<script type="application/json" id="data">{content}</script>')
    parts.append(f"<script>{own.joinpath('page.js').read_text(encoding='utf-8')}</script></body></html>\n")
    return "\n".join(parts)


def _opening(report: Report, title: str) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(report.counts.items()))
    now = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    question = f"<p>{html.escape(report.study.question)}</p>" if report.study.question else ""
    warnings = "".join(f"<li>{html.escape(line)}</li>" for line in report.warnings)
    return (
        f"<h1>{html.escape(title)}</h1>{question}"
        f'<p class="note">{len(report.trials)} trials: {html.escape(counts)}. Written {now}.</p>'
        + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")
    )


def _leaderboard(report: Report) -> str:
    found = report.comparison
    metric = html.escape(found.metric)
    text = [f"<h2>Leaderboard by {metric}</h2>", _table(layout.leaderboard(report), "leaderboard")]
    text += [f'<p class="note">{html.escape(line)}</p>' for line in layout.notes(report)]
    if report.tuned and report.methods:
        text += ["<h2>Methods, each at its best</h2>", _table(layout.methods(report), "methods")]
        text.append(
            '<p class="note">honest: the metric of the setting that other seeds and other rows choose, measured on '
            "those that did not choose. What the best one gains over it is luck of the choice.</p>"
        )
    return "\n".join(text)


def _charts(report: Report) -> str:
    numeric = [axis for axis in report.axes if is_numeric(levels(report.cells, axis))]
    names = [(axis, label(axis, report.axes)) for axis in report.axes]
    # The learning rate lies across, whatever else is down.
    across = next((axis for axis in report.tuned if axis in numeric), None)
    pair = list(dict.fromkeys([axis for axis in [across, *numeric, *report.axes] if axis is not None]))
    first, second = [*pair, "", ""][:2]
    kinds = ["train/loss", *sorted({key for trial in report.trials for key in trial.validation})]
    filters = "".join(
        f"<label>{html.escape(name)}<select data-axis={_quoted(axis)}>"
        f'<option value="">all</option>{_options((json.dumps(v), layout.spell(v)) for v in levels(report.cells, axis))}'
        "</select></label>"
        for axis, name in names
    )
    states = _options((state, state) for state in sorted(report.counts))
    return f"""
<div class="two"><section><h2>Learning rates</h2><div id="rates"></div></section>
<section><h2>Two axes</h2><label>across<select id="heat-x">{_options(names, first)}</select></label>
<label>down<select id="heat-y">{_options(names, second)}</select></label><div id="heat"></div>
<p class="note">Mean over seeds; of cells that differ in other axes, the best.</p></section>
<section><h2>Quality against cost</h2><label>cost<select id="cost">{_options(BUDGETS.items())}</select></label>
<div id="pareto"></div></section>
<section><h2>What matters</h2><div id="importance"></div><p class="note">Share of the variance among cell means
that the means of one axis' values have (functional ANOVA of first order;
in a grid with holes, shares may overlap).</p></section>
</div><h2>Trials</h2><div id="filters"><label>search<input id="search" type="search" placeholder="name, error"></label>
{filters}<label>status<select id="status"><option value="">all</option>{states}</select></label>
<label>curve<select id="curve">{_options((kind, kind) for kind in kinds)}</select></label>
<button id="reset" type="button">reset</button><span id="shown"></span></div>
<div class="two"><section><h2>Curves</h2><div id="curves"></div></section>
<section><h2>Every trial</h2><div id="parallel"></div></section></div>"""


def _trials(report: Report) -> str:
    text = []
    if any(trial.error for trial in report.trials):
        text += ["<h2>Failed and diverged</h2>", _table(layout.failures(report), "failures")]
    return "\n".join([*text, "<h2>All trials, and how to run them again</h2>", _table(layout.trials(report), "trials")])


def _environments(report: Report) -> str:
    return "<h2>Environment</h2>" + _table(layout.environments(report), "environments")


def _table(columns: Sequence[Column], name: str) -> str:
    kinds = [_kind(column) for column in columns]
    pairs = list(zip(columns, kinds, strict=True))
    head = "".join(f'<th class="{kind}">{html.escape(column.name)}</th>' for column, kind in pairs)
    count = max((len(column.values) for column in columns), default=0)
    rows = "".join(
        f'<tr data-trial="{row}">{"".join(_cell(column, kind, column.values[row]) for column, kind in pairs)}</tr>'
        for row in range(count)
    )
    return f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(column: Column, kind: str, value: Value) -> str:
    text = html.escape(column.text(value))
    if kind == "status":
        return f'<td><span class="state {text}">{text}</span></td>'
    return f"<td><code>{text}</code></td>" if kind == "code" else f'<td class="{kind}">{text}</td>'


def _kind(column: Column) -> str:
    named = {"status": "status", "group": "letters", "again": "code", "error": "code"}
    named |= dict.fromkeys(("95 % interval", "p against first"), "number")
    if column.name in named:
        return named[column.name]
    present = [value for value in column.values if value is not None]
    return "number" if present and is_numeric(present) else ""


def _options(pairs: Iterable[tuple[str, str]], chosen: str = "") -> str:
    return "".join(
        f"<option value={_quoted(value)}{' selected' if value == chosen else ''}>{html.escape(text)}</option>"
        for value, text in pairs
    )


def _quoted(text: str) -> str:
    return f'"{html.escape(text)}"'


def _data(report: Report) -> dict[str, Any]:
    """Returns what the charts are drawn from."""
    found, board = report.comparison, report.comparison.board
    methods = {id(one.cell): number for number, method in enumerate(report.methods) for one in method.tried}
    colours = {id(trial): methods.get(id(cell), 0) for cell in report.cells for trial in cell.trials}
    return {
        "metric": found.metric,
        "lower": found.lower_is_better,
        "axes": [
            {"key": axis, "label": label(axis, report.axes), "levels": levels(report.cells, axis)}
            for axis in report.axes
        ],
        "colourBy": "methods" if report.tuned else "cells",
        "budgets": BUDGETS,
        "rates": _rates(report),
        "importance": report.importance,
        "cells": [
            {
                "name": one.cell.name,
                "axes": one.cell.axes,
                "mean": _known(one.estimate.value),
                "budget": {key: _known(budget(one.cell, key)) for key in BUDGETS},
            }
            for one in board
        ],
        "trials": [_trial(report, trial, number, colours[id(trial)]) for number, trial in enumerate(report.trials)],
    }


def _trial(report: Report, trial: Trial, number: int, colour: int) -> dict[str, Any]:
    curves = {"train/loss": _points(trial.loss)} | {key: _points(one) for key, one in trial.validation.items()}
    words = [trial.name, trial.status, trial.error or "", *(f"{k}={layout.spell(v)}" for k, v in trial.axes.items())]
    return {
        "number": number,
        "name": trial.name,
        "status": trial.status,
        "axes": trial.axes,
        "value": _known(trial.values.get(report.comparison.metric)) if trial.completed else None,
        "text": " ".join(words).lower(),
        "colour": colour,
        "curves": curves,
    }


def _points(curve: Curve) -> list[list[float]]:
    """Thins a curve to POINTS, its last point kept, and to four digits."""
    stride = max(1, math.ceil(len(curve.steps) / POINTS))
    keep = [index for index in range(len(curve.steps)) if index % stride == 0 or index == len(curve.steps) - 1]
    return [[curve.steps[index] for index in keep], [float(f"{curve.values[index]:.4g}") for index in keep]]


def _rates(report: Report) -> dict[str, Any] | None:
    """Returns a line for each method over the first tuned axis, where it is of numbers."""
    axis = next((axis for axis in report.tuned if is_numeric(levels(report.cells, axis))), None)
    if axis is None:
        return None
    lines = []
    for method in report.methods:
        points = [
            {
                "x": one.cell.axes[axis],
                "mean": _known(one.estimate.value),
                "low": _known(one.estimate.low),
                "high": _known(one.estimate.high),
            }
            for one in sorted(method.tried, key=lambda one: order(one.cell.axes[axis]))
        ]
        lines.append((method.name, points))
    return {"axis": axis, "lines": [{"name": name, "points": points} for name, points in lines]}


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
