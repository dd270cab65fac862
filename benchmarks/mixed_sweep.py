"""A sweep of twelve in which four trials end badly and the launcher is killed: what becomes of the other eight.

OMP_NUM_THREADS=1 python benchmarks/mixed_sweep.py --out FILE [--seed 0]

One trial raises an error, one's loss is no number, one takes more memory than it may, one is killed with SIGKILL each
time it starts. The launcher is killed at a random moment and started again. Right is: eight completed, each with every
step once and none started again once it was over; the report and the exit code tell of the other four.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from process import ROOT, environment
from study_kills import report
from tables import read_json, read_lines, told

STEPS = 20
BAD = {
    "raises": (["seed=11"], "failed", "RuntimeError: boom"),
    "not_a_number": (["tuner=full", "optim.lr=1e+30"], "diverged", "DivergedError"),
    "out_of_memory": (["seed=15"], "out_of_memory", "of host memory"),
    "killed": (["seed=13"], "killed", "killed by SIGKILL"),
}
"""Overrides of each, how it ends in the report's words, and what is said of it; tests/sweep/mortal_worker.py knows the
seeds."""
GOOD = {f"good_{number}": [f"optim.lr={rate}", f"tuner.rank={rank}"] for number, (rate, rank) in enumerate(
    (rate, rank) for rate in ("0.001", "0.003", "0.01", "0.03") for rank in (2, 4))}  # fmt: skip
ARMS = GOOD | {name: overrides for name, (overrides, *_) in BAD.items()}
BASE = (
    *(
        "data.train_rows=20",
        "data.held_out=4",
        "data.workers=0",
        "data.generation.enabled=false",
        "trainer.accelerator=cpu",
    ),
    *("trainer.batch_size=2", f"trainer.max_steps={STEPS}", "trainer.save_every_steps=5", "trainer.val_at_start=false"),
    *(f"trainer.val_every_steps={STEPS}", "trainer.val_batch_size=128", "trainer.log_every_steps=1"),
)
COMMAND = (sys.executable, str(ROOT / "tests" / "sweep" / "mortal_command.py"), "-m", "hydra/launcher=pool")


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """Starts the sweep in its folder, or goes on with it."""
    own = [f"+sweep={folder}.yaml", f"hydra.sweep.dir={folder}", "hydra.launcher.jobs=2", "hydra.launcher.memory_gib=2"]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([*COMMAND, *own], cwd=folder.parent, env=environment(), stdout=log, stderr=log)


def over(folder: Path) -> dict[str, int]:
    """Returns when the summary of each trial that is over was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def measure(home: Path, seed: int) -> dict[str, Any]:
    """Runs, kills and runs again in an empty folder; returns the figures."""
    folder, draw = home / "mixed", random.Random(seed)
    arms = list(ARMS.items())
    draw.shuffle(arms)
    study = {"question": "who survives?", "base": BASE, "methods": dict(arms), "metric": "val/loss"}
    (home / "mixed.yaml").write_text(json.dumps(study), encoding="utf-8")
    begun = time.monotonic()
    process = start(folder)
    done = draw.randint(2, 6)
    while len(over(folder)) < done:
        assert process.poll() is None, f"the sweep ended with {process.returncode}: {folder.with_suffix('.log')}"
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 5))
    process.kill()
    process.wait()
    before = over(folder)
    codes = [start(folder).wait()]
    after = over(folder)
    # All is over but the one that is killed each time.
    codes.append(start(folder).wait())
    again = sorted(name for name, at in (before | after).items() if over(folder).get(name) != at)
    ask = [sys.executable, "-m", "harness.sweep", "status", str(folder)]
    right, wrong = judge(folder, subprocess.run(ask, env=environment(), capture_output=True, text=True).stdout)
    wrong += [f"{name} was run again once it was over" for name in again]
    wrong += [f"the sweep exits with {codes}, of which each should be 1"] if codes != [1, 1] else []
    figures = {"trials": len(arms), "over_at_kill": len(before), "seconds": time.monotonic() - begun, "wrong": wrong}
    return figures | right | {"exit_codes": codes}


def judge(folder: Path, status: str) -> tuple[dict[str, int], list[str]]:
    """Returns how many completed, each step once, and how many are told of; and what is wrong."""
    told = {row["trial"]: row for row in report(folder)}
    states: dict[str, str] = {}
    wrong = []
    for path in folder.glob("*/trial.json"):
        overrides = read_json(path)["overrides"]
        name = next(name for name, own in ARMS.items() if {*own} <= {*overrides})
        summary, known = read_json(path.parent / "summary.json", {}), read_json(path.parent / "status.json", {})
        states[name] = summary.get("status") or ("killed" if known.get("state") == "running" else known.get("state"))
        text = f"{summary.get('error')} {known.get('exit_reason')}"
        row = told.get(path.parent.name, {})
        if name in BAD:
            _, state, reason = BAD[name]
            told_of = states[name] == row.get("status") == state and path.parent.name in status
            if not told_of or reason not in text:
                wrong.append(f"{name}: {states[name]} ({text}), in the report {row.get('status')}")
        else:
            steps = [json.loads(line)["step"] for line in read_lines(path.parent / "metrics.jsonl")]
            if states[name] != "completed" or steps != list(range(1, STEPS + 1)) or row.get("status") != "completed":
                wrong.append(f"{name}: {states[name]}, steps {steps}, in the report {row.get('status')}")
    wrong += [f"{name}: no folder" for name in (GOOD | BAD).keys() - states.keys()]
    bad = {text.partition(":")[0] for text in wrong}
    return {"done": len(GOOD.keys() - bad), "reported": len(BAD.keys() - bad)}, wrong


def main() -> int:
    """Returns 0 where eight are done once and four told of."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moment of the kill")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        figures = measure(Path(home), options.seed)
    return told(figures, options.out)


if __name__ == "__main__":
    sys.exit(main())
