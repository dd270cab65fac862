"""Runs `python -m harness` as a process of its own, and what it leaves behind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import read_json

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: str
    """completed, or what its summary says, or failed."""
    error: str | None
    summary: dict[str, Any]
    environment: dict[str, Any]
    usage: Any
    """`resource.struct_rusage` of the process and its children."""


def environment() -> dict[str, str]:
    """Returns this process's environment, in which Python finds this checkout first."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def card_and_versions(environment: Mapping[str, Any], packages: Sequence[str]) -> dict[str, Any]:
    """Returns what results say of where a run ran: `device` and `versions`.

    Args:
        environment: Of the run's environment.json; empty where it came to none.
        packages: Whose versions are told.
    """
    found = environment.get("packages", {})
    return {
        "device": environment.get("device", {}).get("name"),
        "versions": {name: found.get(name) for name in packages},
    }


def run_harness(overrides: Sequence[str], folder: Path, limit_s: float, env: Mapping[str, str]) -> Outcome:
    """Runs one trial in its folder, ended after so many seconds; the log lies beside it.

    Args:
        overrides: Of the command line.
        folder: The run folder.
        limit_s: Seconds after which it is ended and counts as failed.
        env: Added to the environment.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = ["timeout", str(limit_s), sys.executable, "-m", "harness"]
    log = folder.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*start, *overrides, f"hydra.run.dir={folder}"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment(), **env},
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    summary = read_json(folder / "summary.json", {})
    failed = process.returncode != 0
    last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-1]
    # A whole model of 4B takes 9 GB of disk, and no figure comes from it.
    shutil.rmtree(folder / "model", ignore_errors=True)
    return Outcome(
        summary.get("status", "failed") if failed else "completed",
        (summary.get("error") or last) if failed else None,
        summary,
        read_json(folder / "environment.json", {}),
        usage,
    )
