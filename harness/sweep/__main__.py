"""`python -m harness.sweep status|retry|cancel FOLDER`: how a sweep goes, its failed trials once more, its end.

All of it is read from files: it works while the sweep runs, after it, and on another machine that sees the folder.
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import EXIT_USER, UserError, tell
from harness.experiment.launch import monitored
from harness.logging.table import show
from harness.sweep.folder import FAILED, Record, SweepFolder, state_of
from harness.sweep.pool import GRACE_S


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m harness.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("status", "retry", "cancel"))
    parser.add_argument("folder", type=Path, help="of the sweep, as outputs/multirun/<study>")
    args = parser.parse_args(arguments)
    sweep = SweepFolder(args.folder)
    try:
        if not sweep.plan.is_file():
            raise UserError(f"{sweep.path}: no sweep; its folder holds a sweep.json")
        {"status": status, "retry": retry, "cancel": cancel}[args.action](sweep)
    except UserError as error:
        tell(error)
        return EXIT_USER
    return 0


def status(sweep: SweepFolder) -> None:
    """Prints a line for each trial, those that wait as well, and how many are in each state."""
    plan, records = sweep.read_plan(), {record.identity: record for record in sweep.records()}
    asked = [trial["identity"] for trial in plan["trials"]]
    rows, states = [], Counter[str]()
    for trial in plan["trials"]:
        record = records.get(trial["identity"])
        state = "waiting" if record is None else state_of(record.folder)
        states[state] += 1
        rows.append([trial["number"], state, *_figures(record, trial["overrides"])])
    show("", ["", "state", "trial", "step", "value", "seconds", "reason"], rows)
    others = len(records.keys() - set(asked))
    counts = [f"{number} {state}" for state, number in sorted(states.items())]
    counts += [f"{others} of other commands"] if others else []
    is_running = sweep.is_locked
    who = f"running, process {plan['pid']} on {plan['host']}" if is_running else "not running"
    print(f"{sweep.path}: {who}; {', '.join(counts)}")


def retry(sweep: SweepFolder) -> NoReturn:
    """Marks the trials that failed as waiting, and becomes the sweep that was started here."""
    _refuse_running(sweep)
    plan = sweep.read_plan()
    asked = {trial["identity"] for trial in plan["trials"]}
    failed = [item for item in sweep.records() if item.identity in asked and state_of(item.folder) in FAILED]
    for record in failed:
        record.folder.write_status(state="waiting", exit_reason=None)
        record.folder.summary.unlink(missing_ok=True)
    print(f"{len(failed)} failed trials start again", flush=True)
    folder = f"hydra.sweep.dir={sweep.path.absolute()}"
    os.chdir(plan["cwd"])
    # The folder's name may have held the time.
    command = [item for item in plan["command"] if not item.startswith("hydra.sweep.dir=")]
    os.execv(sys.executable, [sys.executable, "-m", "harness", *command, folder])


def cancel(sweep: SweepFolder) -> None:
    """Ends a sweep as Ctrl-C does, and waits for it."""
    plan = sweep.read_plan()
    if not sweep.is_locked:
        raise UserError(f"{sweep.path}: no sweep runs in this folder")
    if plan["host"] != socket.gethostname():
        raise UserError(f"{sweep.path}: the sweep runs on {plan['host']}: cancel it there")
    os.kill(plan["pid"], signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S + 5
    while sweep.is_locked:
        if time.monotonic() > deadline:
            raise UserError(f"{sweep.path}: process {plan['pid']} does not end; kill -9 {plan['pid']} ends it")
        time.sleep(0.1)
    print(f"{sweep.path}: ended; the same command goes on with it")


def _refuse_running(sweep: SweepFolder) -> None:
    if sweep.is_locked:
        raise UserError(f"{sweep.path}: the sweep is running; wait for its end, or cancel it")


def _figures(record: Record | None, overrides: list[str]) -> list[Any]:
    """Returns name, step, last value, seconds and why it ended."""
    if record is None:
        return [" ".join(overrides), None, None, None, None]
    run = record.folder
    summary, state = run.read_summary(), run.read_status()
    value = monitored(summary, (summary.get("best") or {}).get("metric", "val/loss"))
    return [run.path.name, state.get("last_step"), value, summary.get("wall_time_s"), state.get("exit_reason")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
