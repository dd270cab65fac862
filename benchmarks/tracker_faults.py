"""Kills runs that a tracker shows, lets them go on, and looks whether each step is there once, in one run.

    OMP_NUM_THREADS=1 python benchmarks/tracker_faults.py --kills 20 --out FILE

TensorBoard's events are read by its own reader, W&B's offline record by its own. W&B's process is killed with the run
in every other try, and lives on for a moment in the others.
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import fault_script
import faults
from rank_faults import kill_tree

from harness.experiment.folder import RunFolder
from harness.logging.metrics import read

MODES = {"tensorboard": ("logging=tensorboard",), "wandb": ("logging=wandb", "logging.mode=offline")}
Curve = list[tuple[int, float]]


def make_bench(home: Path) -> faults.Bench:
    """Returns the runs, with what each needs imported here."""
    import harness.experiment.train  # noqa: F401

    return faults.Bench(home, MODES)


def tensorboard_curve(folder: RunFolder) -> Curve:
    """Returns step and training loss as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def wandb_curves(folder: RunFolder) -> dict[str, Curve]:
    """Returns step and training loss of what `wandb sync` would send, by the run's id."""
    found: dict[str, Curve] = {}
    for path in sorted((folder.path / "wandb").glob("offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        (run_id,) = {record["run"]["run_id"] for record in records if record["type"] == "run"}
        rows = [record["history"]["item"] for record in records if record["type"] == "history"]
        shown = [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
        found.setdefault(run_id, []).extend(shown)
    return found


def shows_all_once(folder: RunFolder, mode: str) -> bool:
    """Whether a tracker has the steps and losses of metrics.jsonl, in their order, under the run's id."""
    truth = [(row["step"], row["train/loss"]) for row in read(folder.metrics)]
    if mode == "wandb":
        return wandb_curves(folder) == {folder.read_status()["run_id"]: truth}
    shown = tensorboard_curve(folder)
    close = all(abs(left - right) < 1e-5 for (_, left), (_, right) in zip(shown, truth, strict=False))
    return [step for step, _ in shown] == [step for step, _ in truth] and close


def killed(bench: faults.Bench, number: int, draw: random.Random) -> dict[str, Any]:
    """Kills a run with one of the trackers, in turn."""
    mode, name = list(MODES)[number % len(MODES)], f"tracked_{number}"
    kill = kill_tree if number // len(MODES) % 2 else faults.kill
    found = faults.kill_at_random(bench, mode, name, draw, kill)
    folder = RunFolder(bench.home / name)
    once = [row["step"] for row in read(folder.metrics)] == list(range(1, faults.STEPS + 1))
    return found | {"ok": found["ok"] and once and shows_all_once(folder, mode)}


if __name__ == "__main__":
    sys.exit(fault_script.run(make_bench, {"kills": killed}))
