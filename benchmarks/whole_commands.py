"""Rows of reliability.py's table whose figures come from scripts that run whole commands, as a user types them."""

from collections.abc import Callable
from typing import Any

SCRIPTS = {
    "sweep": "mixed_sweep.py",
    "slurm": "slurm_study.py",
    "bad_rows": "bad_rows.py",
    "hostile": "hostile_files.py",
    "errors": "clear_errors.py",
}
"""Scripts that need no arguments, by their option of reliability.py, and key in its results."""


def _sweep_row(found: dict[str, Any]) -> tuple[str, ...]:
    codes = " and ".join(map(str, sorted(set(found["exit_codes"]))))
    return (
        f"sweep of {found['trials']}: one raises, one NaN, one out of memory, one killed, launcher killed and run "
        "again",
        "8 done once, 4 reported",
        f"{found['done']} done once, {found['reported']} reported, exit code {codes}",
        "launcher dies (1)",
    )


def _slurm_row(found: dict[str, Any]) -> tuple[str, ...]:
    limit = f"time limit: goes on, {found['limit']['attempts']} attempts"
    equal = "equal to the pool's" if not found["wrong"] else f"{len(found['wrong'])} wrong"
    return (
        f"SLURM: a study of {found['trials']} trials preempted {found['preempted']} times, requeued, finished; "
        "time limit; scancel",
        "all finish; stays cancelled",
        f"{found['preempted']} of {found['preempted']}, report {equal}; {limit}; cancelled: {found['cancel']['state']}",
        "0 (1)",
    )


def _bad_rows_row(found: dict[str, Any]) -> tuple[str, ...]:
    wrong = f", {len(found['wrong'])} wrong" if found["wrong"] else ", no good row left out"
    return (
        f"{found['rows']:,} rows, {found['broken']} broken in {found['ways']} ways",
        "run ends, each named",
        f"run completes, {found['broken']} named by file and line{wrong}",
        "crash (1)",
    )


def _hostile_row(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"hostile files: {found['runs']} runs given code (pickles, models, templates, configs), {found['root']} ways "
        "out of `data.root`",
        "nothing run, nothing read outside the root",
        f"{len(found['ran']) or 'nothing'} run, {len(found['opened']) or 'nothing'} opened outside",
        "two run (1)",
    )


def _errors_row(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"time to a clear error, {found['tried']} likely mistakes, each a process",
        "under 3 s, before weights load",
        f"{found['in_time']} of {found['tried']}, median {found['median_s']:.1f} s, longest {found['longest_s']:.1f} s",
        "minutes (1)",
    )


ROWS: dict[str, Callable[[dict[str, Any]], tuple[str, ...]]] = {
    "sweep": _sweep_row,
    "slurm": _slurm_row,
    "bad_rows": _bad_rows_row,
    "hostile": _hostile_row,
    "errors": _errors_row,
}
