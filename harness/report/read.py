"""Run folders to trials: whatever their state, of several sweeps at once."""

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import flatten, is_volatile
from harness.errors import UserError
from harness.report.files import curve, read_items, read_json, read_rows, read_yaml, state
from harness.report.trial import Trial, Value


@dataclass(kw_only=True, slots=True)
class Study:
    """What study.yaml says of a sweep; all of it may be unknown."""

    name: str = ""
    question: str = ""
    metric: str | None = None
    mode: str | None = None
    """min or max."""
    axes: list[str] = field(default_factory=list)


def read_study(folders: Iterable[Path]) -> Study:
    """Returns what the first study.yaml in the folders says, with the axes of all."""
    study = Study()
    for folder in folders:
        content = read_yaml(folder / "study.yaml")
        if not isinstance(content, dict):
            continue
        study.name = study.name or str(content.get("name") or "")
        study.question = study.question or str(content.get("question") or "")
        study.metric = study.metric or content.get("metric")
        study.mode = study.mode or content.get("mode")
        study.axes += [str(axis) for axis in content.get("axes") or [] if axis not in study.axes]
    return study


def read_trials(folders: Sequence[Path]) -> list[Trial]:
    """Reads the run folders in, or below, the folders given.

    Raises:
        UserError: A folder is missing, or holds no run.
    """
    trials = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a sweep, or of a run")
        runs = find_runs(folder)
        if not runs:
            raise UserError(f"{folder}: no run folder in it (none has a config.yaml or trial.json)")
        trials += [read_trial(run) for run in runs]
    unique = {trial.folder.resolve(): trial for trial in trials}
    return list(unique.values())


def find_runs(folder: Path) -> list[Path]:
    """Returns the run folders in a folder, itself or below it, in the order of their numbers."""
    found = []
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files or "trial.json" in files:
            found.append(Path(path))
            folders.clear()
        else:
            # Neither Hydra's record nor a result is a run, though they hold files of such names.
            folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found, key=lambda path: (path.parent, _number(path.name), path.name))


def read_trial(folder: Path) -> Trial:
    """Reads one run folder; what is missing or torn in it is left out."""
    status, summary = read_json(folder / "status.json"), read_json(folder / "summary.json")
    told = read_json(folder / "trial.json")
    stored = read_yaml(folder / "config.yaml")
    flat = flatten(stored) if isinstance(stored, dict) else {}
    rows = read_rows(folder / "metrics.jsonl")
    standing = state(folder, status, summary)
    last: dict[str, Any] = next((row for row in reversed(rows) if any(key.startswith("val/") for key in row)), {})
    val = summary.get("val") if standing == "completed" else None
    values = val or {key: value for key, value in last.items() if key.startswith("val/") and value is not None}
    overrides = told.get("overrides") or read_yaml(folder / ".hydra" / "overrides.yaml") or []
    keys = sorted({key for row in rows for key in row if key.startswith("val/")})
    seed = flat.get("seed", summary.get("seed"))
    return Trial(
        folder=folder,
        sweep=folder.resolve().parent.name,
        status=standing,
        config={key: value for key, value in flat.items() if not is_volatile(key) and key != "seed"},
        overrides=parse_overrides(overrides),
        seed=seed if isinstance(seed, int) else None,
        command=told.get("command") or _command(overrides),
        step=rows[-1]["step"] if rows else 0,
        max_steps=flat.get("trainer.max_steps"),
        values={key: float(value) for key, value in values.items()},
        best=summary.get("best") or {},
        monitor=str(flat.get("trainer.monitor") or "val/loss"),
        summary=summary,
        environment=read_json(folder / "environment.json"),
        loss=curve(rows, "train/loss"),
        validation={key: curve(rows, key) for key in keys},
        items=read_items(folder, last.get("step")) if standing == "completed" else {},
        error=_error(standing, status, summary),
    )


def parse_overrides(overrides: Iterable[Any]) -> dict[str, Value]:
    """Returns the keys and values of Hydra overrides; those that delete a key, or are none, are left out."""
    pairs = (str(item).lstrip("+").partition("=") for item in overrides)
    return {key.partition("@")[0]: parse_value(value) for key, sign, value in pairs if sign and not key.startswith("~")}


def parse_value(text: str) -> Value:
    """Returns a number or truth value where the text is one, else the text."""
    named: dict[str, Value] = {"true": True, "false": False, "null": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _error(standing: str, status: dict[str, Any], summary: dict[str, Any]) -> str | None:
    if standing == "killed":
        return f"process {status.get('pid')} is gone and left no word (killed, or the machine stopped)"
    if standing in ("completed", "running", "waiting", "pruned"):
        return None
    return summary.get("error") or status.get("exit_reason")


def _command(overrides: Iterable[Any]) -> str:
    return shlex.join(["python", "-m", "harness", *map(str, overrides)])


def _number(name: str) -> int:
    digits = name.partition("_")[0]
    return int(digits) if digits.isdigit() else 0
