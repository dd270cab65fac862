"""What differs among trials, and the cells that it makes."""

import json
from collections.abc import Sequence
from typing import Any

from harness.config import is_volatile
from harness.report.trial import Cell, Trial, Value

_NOT_VARIED = ("seed", "hydra")
"""Overrides that make no axis: a cell holds the seeds of one config, and Hydra's own keys are about folders."""


def find_axes(trials: Sequence[Trial], named: Sequence[str] = ()) -> list[str]:
    """Returns the keys that tell cells apart, and gives each trial its values of them.

    They are the study's, else the overrides that differ, else the config's keys that differ. Where cells of different
    configs would still be one, as over folders of different settings, the config's keys that differ are added. Keys
    that change no result are none, but where a seed ran more than once, to compare speed.

    Args:
        trials: Of all folders.
        named: The axes of study.yaml.
    """
    axes = [axis for axis in named if axis != "seed"] or _differing([_varied(trial) for trial in trials], trials)
    _place(trials, axes)
    if _mixed(trials):
        flat = _differing([trial.config for trial in trials], trials)
        groups = {axis for axis in axes if all(axis not in trial.config for trial in trials)}
        axes += [key for key in flat if key not in axes and not any(key.startswith(f"{axis}.") for axis in groups)]
        _place(trials, axes)
    if _mixed(trials):
        # Two presets under one name of a group.
        axes += [key for key in _differing([trial.config for trial in trials], trials) if key not in axes]
        _place(trials, axes)
    if len({(_key(trial), trial.seed) for trial in trials}) < len(trials):
        axes += [
            key for key in _differing([_varied(trial, volatile=True) for trial in trials], trials) if key not in axes
        ]
        _place(trials, axes)
    return axes


def cells_of(trials: Sequence[Trial]) -> list[Cell]:
    """Returns the cells, in the order in which their first trials come."""
    found: dict[str, Cell] = {}
    for trial in trials:
        found.setdefault(_key(trial), Cell(axes=trial.axes, trials=[])).trials.append(trial)
    return list(found.values())


def levels(cells: Sequence[Cell], axis: str) -> list[Value]:
    """Returns the values that an axis takes, numbers in their order."""
    present = list({_hashable(cell.axes.get(axis)): cell.axes.get(axis) for cell in cells}.values())
    return sorted(present, key=order)


def order(value: Value) -> tuple[int, float, str]:
    """Sorts numbers by size, then other values by name."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def is_numeric(values: Sequence[Value]) -> bool:
    """Whether all values are numbers."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _varied(trial: Trial, *, volatile: bool = False) -> dict[str, Any]:
    varied = {key: value for key, value in trial.overrides.items() if key.partition(".")[0] not in _NOT_VARIED}
    return {key: value for key, value in varied.items() if is_volatile(key) is volatile}


def _differing(found: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> list[str]:
    """Returns the keys of which trials have different values, in the order of their first mention."""
    keys = list(dict.fromkeys(key for values in found for key in values))
    values = {key: {_hashable(_value(trial, key)) for trial in trials} for key in keys}
    return [key for key in keys if len(values[key]) > 1 and not key.startswith("logging.")]


def _value(trial: Trial, key: str) -> Any:
    """Returns what a trial has for a key: its own override's, else the config's (of a group, the name)."""
    if key in trial.overrides:
        return trial.overrides[key]
    return trial.config.get(key, trial.config.get(f"{key.replace('/', '.')}.name"))


def _place(trials: Sequence[Trial], axes: Sequence[str]) -> None:
    for trial in trials:
        values = {axis: _value(trial, axis) for axis in axes}
        trial.axes = {
            axis: value if _is_plain(value) else json.dumps(value, separators=(",", ":"))
            for axis, value in values.items()
        }


def _mixed(trials: Sequence[Trial]) -> bool:
    """Whether trials of different configs have equal values on all axes."""
    configs: dict[str, str] = {}
    for trial in trials:
        if trial.config:
            config = json.dumps(trial.config, sort_keys=True, default=str)
            if configs.setdefault(_key(trial), config) != config:
                return True
    return False


def _key(trial: Trial) -> str:
    return json.dumps(trial.axes, sort_keys=True, default=str)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _hashable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
