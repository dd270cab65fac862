"""A grid of real trials, killed with SIGKILL at a random moment and started again, ends as if nothing had been."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from harness.experiment.folder import RunFolder
from tests.sweep.conftest import ROOT

GRID = (
    *("-m", "hydra/launcher=pool", "hydra.launcher.jobs=2", "tuner.rank=2,4", "optim.lr=1e-3,1e-2"),
    *("data.train_rows=16", "data.workers=0", "data.generation.enabled=false", "trainer.accelerator=cpu"),
    *("trainer.batch_size=2", "trainer.max_steps=60", "trainer.save_every_steps=5", "trainer.val_every_steps=60"),
    *("trainer.val_at_start=false", "trainer.val_batch_size=128", "trainer.log_every_steps=1"),
)
SAME = ("status", "config_hash", "seed", "steps", "tokens", "train_loss", "val", "best")


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *GRID, f"hydra.sweep.dir={folder}"],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(folder):
    summaries = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    return {name: {key: summary[key] for key in SAME} for name, summary in summaries.items()}


@pytest.mark.slow
def test_a_grid_that_was_killed_ends_as_an_undisturbed_one(tmp_path):
    whole = start(tmp_path / "whole")
    output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    process = start(tmp_path / "killed")
    while not any((tmp_path / "killed").glob("*/checkpoints/last")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(random.uniform(0, 8))
    process.kill()
    process.communicate()
    over = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/summary.json")}
    completed = [name for name in over if RunFolder(tmp_path / "killed" / name).read_status()["state"] == "completed"]
    again = start(tmp_path / "killed")
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    for name in completed:
        assert (tmp_path / "killed" / name / "summary.json").stat().st_mtime_ns == over[name]
