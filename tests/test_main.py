"""The command line as a user types it: exit codes, messages, the last line. Each case is a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.logging.metrics import read

QUICK = (
    "data.train_rows=32",
    "data.workers=0",
    "data.generation.max_samples=8",
    "trainer.batch_size=8",
    "trainer.max_steps=4",
    "trainer.val_at_start=false",
)
ROOT = Path(harness.__file__).parent.parent


def harness_command(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=300,
    )


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = harness_command(tmp_path, "tuner.rnak=4")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: tuner.rnak=4: no such key. Did you mean tuner.rank? Known below tuner: "
        "alpha, bias, dropout, dtype, init, name, rank, rslora, target_modules"
    ]
    assert not (tmp_path / "outputs").exists()


def test_the_traceback_is_there_for_who_asks(tmp_path):
    result = harness_command(tmp_path, "tuner.rank=0", HYDRA_FULL_ERROR="1")
    assert result.returncode != 0 and "Traceback" in result.stderr


def run_folder(result) -> Path:
    return Path(result.stdout.splitlines()[-1].removeprefix("run: "))


@pytest.mark.slow
def test_the_owners_line_runs_as_it_stands(tmp_path):
    result = harness_command(tmp_path, "tuner=dora", "optim.lr=2e-4", *QUICK)
    assert result.returncode == 0, result.stderr
    folder = run_folder(result)
    assert folder.parent == tmp_path / "outputs"
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_a_run_goes_on_from_the_command_line(tmp_path):
    whole = run_folder(harness_command(tmp_path, *QUICK, "optim.schedule.name=constant"))
    half = run_folder(harness_command(tmp_path, *QUICK, "optim.schedule.name=constant", "trainer.max_steps=2"))
    result = harness_command(tmp_path, f"trainer.resume={half}", "trainer.max_steps=4")
    assert result.returncode == 0, result.stderr
    assert run_folder(result) == half
    losses = [[row["train/loss"] for row in read(folder / "metrics.jsonl")] for folder in (whole, half)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    refused = harness_command(tmp_path, f"trainer.resume={half}", "optim.lr=1e-3")
    assert refused.returncode == 2 and "optim.lr: None -> 0.001" in refused.stderr


@pytest.mark.slow
def test_a_multirun_compares_its_trials_best_first(tmp_path):
    grid = ["tuner.rank=4,8", "optim.lr=1e-3,3e-3"]
    result = harness_command(tmp_path, "-m", *grid, *QUICK, "data.generation.enabled=false")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    folder = run_folder(result)
    summaries = [json.loads(path.read_text()) for path in folder.glob("*/summary.json")]
    assert len(summaries) == 4 and len({summary["config_hash"] for summary in summaries}) == 4
    table = [line for line in lines if "completed" in line]
    losses = [float(line.split("completed")[1].split()[0]) for line in table]
    assert len(losses) == 4 and losses == sorted(losses)


@pytest.mark.slow
def test_one_failed_trial_does_not_stop_the_others(tmp_path):
    result = harness_command(tmp_path, "-m", "optim.lr=1e30,1e-3", "tuner=full", *QUICK)
    assert result.returncode == 1
    states = sorted(json.loads(path.read_text())["status"] for path in run_folder(result).glob("*/summary.json"))
    assert states == ["completed", "diverged"]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """DDP over gloo: the same global batch gives the same curve, whoever holds the rows."""
    common = [*QUICK, "tuner.dropout=0", "optim.lr=1e-3", "trainer.log_every_steps=1"]
    one = run_folder(harness_command(tmp_path, *common))
    result = harness_command(tmp_path, *common, "trainer.devices=2", "trainer.batch_size=4", "trainer.accelerator=cpu")
    assert result.returncode == 0, result.stderr
    curves = [[row["train/loss"] for row in read(folder / "metrics.jsonl")] for folder in (one, run_folder(result))]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    final = [read(folder / "metrics.jsonl")[-1] for folder in (one, run_folder(result))]
    assert final[1]["val/loss"] == pytest.approx(final[0]["val/loss"], abs=1e-5)
    assert final[1]["val/exact_match"] == final[0]["val/exact_match"]
