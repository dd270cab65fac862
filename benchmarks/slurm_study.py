"""A shipped study through a real SLURM of one node: preempted again and again, at its time limit, and cancelled.

OMP_NUM_THREADS=1 python benchmarks/slurm_study.py --preemptions 10 --out FILE

Needs slurm-wlm and munge, and root (tests/sweep/local_slurm.py). The study is an array of eight trials, two at a time;
a job of a better partition takes their place so often that ten are preempted. Its results have to be those of the
pool, to the last digit, with each step once. Then a trial runs into its time limit, and one is cancelled by Ctrl-C.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process import ROOT
from study_kills import report, start, trials
from tables import read_json, read_lines, told

sys.path.insert(0, str(ROOT))
from tests.sweep import local_slurm

STUDY, STEPS = "rank_lr_freeze", 400
GRID = ("tuner.rank=4,8", "optim.lr=1e-3,3e-3", "freeze=vit_aligner", "seed=1,2")
CPU = (
    *("trainer.accelerator=cpu", "trainer.save_every_steps=20", f"trainer.max_steps={STEPS}"),
    *(f"trainer.val_every_steps={STEPS}", "data.train_rows=80", "data.held_out=16", "trainer.log_every_steps=1"),
)
SLURM = ("hydra.launcher.partition=low", "hydra.launcher.cpus=1", "hydra.launcher.poll_seconds=0.5")
ONE = ("tuner.rank=4", "optim.lr=1e-3", "freeze=vit_aligner", "seed=1")
_LIMIT_S = 900.0


def ask(*command: str) -> str:
    """Asks SLURM."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def steps(folder: Path) -> list[int]:
    """Returns the steps of a trial so far."""
    return [json.loads(line)["step"] for line in read_lines(folder / "metrics.jsonl") if line.endswith("}")]


def status(folder: Path) -> dict[str, Any]:
    """Returns what a trial's status says."""
    return read_json(folder / "status.json", {})


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[bytes]") -> None:
    """Waits until something holds, or the study is over."""
    deadline = time.monotonic() + _LIMIT_S
    while process.poll() is None and not condition():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain")
        time.sleep(0.1)


def preempted(folder: Path, number: int) -> tuple[int, int]:
    """Runs the study to its end, its running trials preempted until so many were; returns exit code and how many."""
    process = start(STUDY, folder, [*GRID, *CPU, *SLURM], launcher="slurm")
    begun: dict[str, int] = {}

    def attempts() -> int:
        return sum(max(0, status(path.parent).get("attempt", 1) - 1) for path in folder.glob("*/status.json"))

    def at_work() -> list[str]:
        running = [
            path.parent for path in folder.glob("*/status.json") if status(path.parent).get("state") == "running"
        ]
        return [item.name for item in running if len(steps(item)) > begun.get(item.name, 0) + 3]

    while process.poll() is None and attempts() < number:
        wait_for(at_work, process)
        if process.poll() is not None:
            break
        begun |= {name: len(steps(folder / name)) for name in at_work()}
        # Over when the job is: a trial that completes in between is not preempted.
        ask("sbatch", "--wait", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap", "sleep 1")
    return process.wait(), attempts()


def at_the_limit(folder: Path) -> dict[str, Any]:
    """Runs a trial that takes longer than its job may."""
    more = [*ONE, *CPU, *SLURM, "trainer.max_steps=1000", "trainer.val_every_steps=1000"]
    limit = ["hydra.launcher.time=00:01:00", "hydra.launcher.signal_seconds=15"]
    code = start(STUDY, folder, [*more, *limit], launcher="slurm").wait()
    (trial,) = (path.parent for path in folder.glob("*/trial.json"))
    known = status(trial)
    whole = steps(trial) == list(range(1, 1001))
    return {"ok": code == 0 and known["attempt"] > 1 and whole, "code": code, "attempts": known["attempt"]}


def cancelled(folder: Path) -> dict[str, Any]:
    """Ends a trial by Ctrl-C of its launcher, and looks whether it stays where it is."""
    process = start(STUDY, folder, [*ONE, *CPU, *SLURM, "trainer.max_steps=100000"], launcher="slurm")
    wait_for(lambda: any(len(steps(path.parent)) > 3 for path in folder.glob("*/trial.json")), process)
    process.send_signal(signal.SIGINT)
    code = process.wait()
    (trial,) = (path.parent for path in folder.glob("*/trial.json"))
    known = status(trial)
    time.sleep(15)
    left = ask("squeue", "--noheader", "--states=PENDING,RUNNING,REQUEUED")
    stays = left == "" and status(trial) == known
    return {"ok": code == 130 and known["state"] == "preempted" and stays, "code": code, "state": known["state"]}


def measure(home: Path, preemptions: int) -> dict[str, Any]:
    """Runs all of it in an empty folder; returns the figures."""
    begun = time.monotonic()
    if code := start(STUDY, home / "pool", [*GRID, *CPU, "hydra.launcher.jobs=2"]).wait():
        raise SystemExit(f"the pool ended with {code}: {home / 'pool.log'}")
    code, number = preempted(home / "slurm", preemptions)
    expected, found = trials(home / "pool"), trials(home / "slurm")
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    wrong = [f"{name} differs from the pool's" for name in differ]
    wrong += [f"the study exits with {code}"] if code else []
    wrong += ["the report differs from the pool's"] if report(home / "pool") != report(home / "slurm") else []
    folders = [path.parent for path in (home / "slurm").glob("*/trial.json")]
    wrong += [f"{path.name}: steps {steps(path)}" for path in folders if steps(path) != list(range(1, STEPS + 1))]
    once = {name: status(home / "slurm" / name).get("attempt") for name in found}
    limit, cancel = at_the_limit(home / "limit"), cancelled(home / "cancel")
    wrong += [f"time limit: {limit}"] if not limit["ok"] else []
    wrong += [f"cancelled: {cancel}"] if not cancel["ok"] else []
    figures = {"trials": len(found), "preempted": number, "attempts": once, "limit": limit, "cancel": cancel}
    return figures | {"seconds": time.monotonic() - begun, "wrong": wrong}


def main() -> int:
    """Returns 0 where all is as it should be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preemptions", type=int, default=10)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    # Sockets have short names.
    slurm = Path(f"/tmp/slurm_{os.getpid()}")
    os.environ |= local_slurm.up(slurm)
    try:
        with tempfile.TemporaryDirectory() as home:
            figures = measure(Path(home), options.preemptions)
    finally:
        local_slurm.down(slurm)
        shutil.rmtree(slurm, ignore_errors=True)
    return told(figures, options.out)


if __name__ == "__main__":
    sys.exit(main())
