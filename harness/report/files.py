"""Reads the files of a run folder, which may be half written, torn or missing while the run lives."""

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.report.trial import Curve, Items
from harness.yaml_file import UNREADABLE

POINTS = 80
"""Rows of metrics.jsonl that are read for a training curve; of more, evenly many are left out."""

_VAL = b'"val/'


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty where it is missing, torn, or holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_yaml(path: Path) -> Any:
    """Returns the content of a YAML file, or None where it is missing or torn."""
    try:
        # The C parser is ten times as fast, and not in every build of PyYAML.
        return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, *UNREADABLE):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns rows of metrics.jsonl: all with a validation, the first, the last, and evenly some of the others.

    A line that is no row, as the last one of a killed process, is left out.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    stride = max(1, math.ceil(len(lines) / POINTS))
    last = len(lines) - 2
    wanted = [line for n, line in enumerate(lines) if n % stride == 0 or n >= last or _VAL in line]
    try:
        # At once, which is twice as fast as line by line.
        rows = json.loads(b"[" + b",".join(wanted) + b"]")
    except ValueError:
        rows = [row for line in wanted for row in _row(line)]
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _row(line: bytes) -> list[Any]:
    try:
        return [json.loads(line)]
    except ValueError:
        return []


def curve(rows: list[dict[str, Any]], key: str) -> Curve:
    """Returns the finite values of a metric."""
    points = [(row["step"], value) for row in rows if (value := row.get(key)) is not None and math.isfinite(value)]
    return Curve(steps=[step for step, _ in points], values=[value for _, value in points])


def read_items(folder: Path, step: int | None) -> dict[str, Items]:
    """Returns what items.json holds for each metric, if it is of the validation after so many steps."""
    content = read_json(folder / "items.json")
    if not content or (step is not None and content.get("step") != step):
        return {}
    try:
        origins, tokens = content["origin"], np.asarray(content["tokens"], dtype=np.float64)
        found = {"val/loss": _items(origins, content["loss"], tokens)}
        if "exact_match" in content:
            found["val/exact_match"] = _items(origins, content["exact_match"], np.ones(len(origins)))
    except (KeyError, TypeError, ValueError):
        return {}
    return found


def _items(origins: list[str], values: list[float | None], weight: np.ndarray) -> Items:
    numerator = np.array([math.nan if value is None else value for value in values])
    order = np.argsort(np.asarray(origins), kind="stable")
    order = order[np.isfinite(numerator[order])]
    return Items(origins=tuple(origins[index] for index in order), numerator=numerator[order], weight=weight[order])


def state(folder: Path, status: dict[str, Any], summary: dict[str, Any]) -> str:
    """Returns how the trial stands: its summary's status, or whether a process is at it."""
    told = status.get("state") or summary.get("status")
    if told is None:
        return "waiting"
    if told != "running":
        return str(told)
    # Taking the lock would tell for certain, and might keep a trial out that begins in that moment.
    return "killed" if status.get("host") == socket.gethostname() and not _lives(status.get("pid")) else "running"


def _lives(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
