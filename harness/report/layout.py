"""The tables of a report as columns, which console, CSV and page show alike."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.report.analysis import BUDGETS, Report, budget, label
from harness.report.compare import Ranked
from harness.report.trial import Trial, Value, spell

__all__ = ["Column", "environments", "failures", "leaderboard", "methods", "notes", "spell", "trials"]


@dataclass(kw_only=True, slots=True)
class Column:
    """A heading and its values."""

    name: str
    values: list[Value] = field(default_factory=list)
    form: str = ".4g"
    """Of floats."""

    def text(self, value: Value) -> str:
        """Spells one value."""
        if value is None:
            return "-"
        if isinstance(value, int) and not isinstance(value, bool) and "," in self.form:
            return f"{value:,}"
        return format(value, self.form) if isinstance(value, float) else spell(value)


def leaderboard(report: Report) -> list[Column]:
    """Returns the cells, best first."""
    board, found = report.comparison.board, report.comparison
    axes = [
        Column(name=label(axis, report.axes), values=[one.cell.axes.get(axis) for one in board], form="g")
        for axis in report.axes
    ]
    said: list[Column] = [
        Column(name=found.metric, values=[one.estimate.value for one in board], form=".5g"),
        Column(name="95 % interval", values=[_interval(one) for one in board]),
        Column(name="group", values=[one.letters or None for one in board]),
        Column(name="p against first", values=[_number(one.p) for one in board], form=".2g"),
        Column(name="best of draws", values=[_number(one.chance) for one in board], form=".0%"),
        Column(name="seeds", values=[_seeds(one) for one in board]),
    ]
    costs = [
        Column(name=name, values=[_whole(budget(one.cell, key)) for one in board], form=",.4g")
        for key, name in BUDGETS.items()
    ]
    rank = Column(name="", values=[number for number, _ in enumerate(board, start=1)])
    return [rank, *axes, *said, *(cost for cost in costs if any(value is not None for value in cost.values))]


def methods(report: Report) -> list[Column]:
    """Returns the methods, best first, each at the best value of the tuned axes."""
    found = report.methods
    axes = [axis for axis in report.axes if axis not in report.tuned]
    columns = [
        Column(name=label(axis, report.axes), values=[one.axes.get(axis) for one in found], form="g") for axis in axes
    ]
    columns += [
        Column(
            name=f"chosen {label(axis, report.axes)}",
            values=[one.chosen.cell.axes.get(axis) for one in found],
            form="g",
        )
        for axis in report.tuned
    ]
    return [
        *columns,
        Column(name="tried", values=[len(one.tried) for one in found]),
        Column(name=report.comparison.metric, values=[one.chosen.estimate.value for one in found], form=".5g"),
        Column(name="95 % interval", values=[_interval(one.chosen) for one in found]),
        Column(name="honest", values=[_number(one.honest) for one in found], form=".5g"),
        Column(name="group", values=[one.letters or None for one in found]),
        Column(name="edge of the grid", values=["; ".join(one.edges) or None for one in found]),
    ]


def failures(report: Report) -> list[Column]:
    """Returns the trials that ended otherwise than they should."""
    found = [trial for trial in report.trials if trial.error is not None]
    return [
        Column(name="trial", values=[trial.name for trial in found]),
        Column(name="status", values=[trial.status for trial in found]),
        Column(name="step", values=[trial.step for trial in found]),
        Column(name="error", values=[trial.error for trial in found]),
        Column(name="again", values=[trial.command for trial in found]),
    ]


def trials(report: Report) -> list[Column]:
    """Returns every trial, in the order of its folder."""
    found, metric = report.trials, report.comparison.metric
    axes = [
        Column(name=label(axis, report.axes), values=[trial.axes.get(axis) for trial in found], form="g")
        for axis in report.axes
    ]
    return [
        Column(name="trial", values=[trial.name for trial in found]),
        Column(name="status", values=[trial.status for trial in found]),
        *axes,
        Column(name="seed", values=[trial.seed for trial in found]),
        Column(name="step", values=[_progress(trial) for trial in found]),
        Column(name=metric, values=[trial.values.get(metric) for trial in found], form=".5g"),
        Column(name=f"best {metric}", values=[_best(trial, metric) for trial in found], form=".5g"),
        Column(name="again", values=[trial.command for trial in found]),
    ]


def environments(report: Report) -> list[Column]:
    """Returns the different environments in which trials ran."""
    seen: dict[str, list[Trial]] = {}
    for trial in report.trials:
        if trial.environment:
            seen.setdefault(json.dumps(trial.environment, sort_keys=True), []).append(trial)
    told = [json.loads(text) for text in seen]
    return [
        Column(name="trials", values=[len(found) for found in seen.values()]),
        Column(name="commit", values=[_commit(one.get("git") or {}) for one in told]),
        Column(name="device", values=[_joined((one.get("device") or {}).items()) for one in told]),
        Column(name="python", values=[f"{one.get('python')} on {one.get('platform', '?')}" for one in told]),
        Column(name="packages", values=[_joined((one.get("packages") or {}).items()) for one in told]),
        Column(name="data", values=[str(one.get("data_fingerprint", ""))[:12] for one in told]),
    ]


def notes(report: Report) -> list[str]:
    """Returns what has to be known to read the leaderboard."""
    noise, found = report.comparison.noise, report.comparison
    better = "lower" if found.lower_is_better else "higher"
    alone = found.by_item and all(len(one.seeds) < 2 for one in found.board)
    rows = "seeds and validation rows" if found.by_item else "seeds"
    if alone:
        rows = "validation rows of these very runs, for there is one seed a cell"
    said = [
        f"{found.metric}, {better} is better, after the last validation. Intervals are for new {rows}; cells that "
        "share a letter can not be told apart (paired tests, Holm's correction over all pairs, 5 %)."
    ]
    if found.by_item:
        said.append(
            "Cells were validated on the same rows, so two may differ for certain though their intervals overlap."
        )
    if math.isfinite(noise.seed_sd):
        line = f"Noise floor: seeds of one config differ by {noise.seed_sd:.3g} (standard deviation)"
        if noise.repeats:
            line += f", runs of one seed by {noise.repeat_sd:.3g} ({noise.repeats} repeated)"
        said.append(f"{line}.")
    if math.isfinite(noise.smallest):
        said.append(f"Smallest difference that this study finds in four cases of five: {noise.smallest:.3g}.")
    return said


def _interval(one: Ranked) -> str | None:
    half = one.estimate.half
    return f"{one.estimate.low:.5g} to {one.estimate.high:.5g}" if math.isfinite(half) else None


def _seeds(one: Ranked) -> str:
    started = len({trial.seed for trial in one.cell.trials})
    return f"{len(one.seeds)}" if started == len(one.seeds) else f"{len(one.seeds)} of {started}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _whole(value: float | None) -> Value:
    return int(value) if value is not None and value == int(value) else value


def _progress(trial: Trial) -> Value:
    return trial.step if trial.completed or not trial.max_steps else f"{trial.step} of {trial.max_steps}"


def _best(trial: Trial, metric: str) -> float | None:
    value = trial.best.get("value") if trial.best.get("metric") == metric else None
    return float(value) if isinstance(value, int | float) else None


def _commit(git: dict[str, Value]) -> str:
    return f"{str(git.get('commit') or '-')[:10]}{' with changes' if git.get('dirty') else ''}"


def _joined(pairs: Iterable[tuple[str, Value]]) -> str:
    return ", ".join(f"{key} {spell(value)}" for key, value in pairs if value is not None)
