"""The command line as a user types it: exit codes, messages, the last line. Each case is a process of its own."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import harness
from harness.logging.metrics import read
from harness.tuner.lora import LoraConfig

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
        + ", ".join(sorted(field.name for field in dataclasses.fields(LoraConfig)))
    ]
    assert not (tmp_path / "outputs").exists()


def test_the_traceback_is_there_for_who_asks(tmp_path):
    result = harness_command(tmp_path, "tuner.rank=0", HYDRA_FULL_ERROR="1")
    assert result.returncode != 0 and "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "optim.lr=interval(0,1)"], r"optim.lr=interval\(0,1\): a grid takes values, .*hydra/sweeper=optuna"),
        (["-m", "seed=range(0)"], "nothing to run: a key has no values to vary over"),
        (["-m", "seed=1,2", "--cfg", "job"], "--cfg shows the config of one run"),
        (["-m", "seed=1,2", "hydra/launcher=pol"], r"hydra/launcher=pol: no such option\. Did you mean pool\?"),
        (["-m", "seed=1,2", "hydra.launcher.job=1"], r"no such key\. .*Known below hydra\.launcher: "),
        (["hydra.run.dir=file/run"], r"the run folder can not be made: .*file/run"),
    ],
)
def test_a_mistake_about_the_sweep_or_its_folder(tmp_path, arguments, message):
    (tmp_path / "file").touch()
    result = harness_command(tmp_path, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert re.search(f"^error: .*{message}", line)


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


STEPS = 240
TEXT = ("data=jsonl", "data.workers=0", "trainer.batch_size=2", "trainer.log_every_steps=1", "optim.lr=1e-3")
LONG = (*TEXT, f"trainer.max_steps={STEPS}", "trainer.save_every_steps=5", "trainer.keep_checkpoints=1")
"""A run to be stopped on its way, of short steps and without validation."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Idle threads that wait for their turn slow each other down where processes share few cores."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eight rows: text and image, text twice, image and text, images twice."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number, has_image in enumerate([False, True, False, False, True, False, True, True]):
        Image.new("RGB", (64, 64), (30 * number, 90, 200 - 20 * number)).save(folder / f"{number}.png")
        question = "<image>What is it?" if has_image else f"How much is {number} and {number}?"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"it is {2 * number}"}]
        lines.append({"messages": turns} | ({"images": [f"{number}.png"]} if has_image else {}))
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "train.jsonl"


@pytest.fixture(scope="module")
def whole_losses(rows, tmp_path_factory):
    """Losses of the run to be stopped where nothing stops it."""
    folder = tmp_path_factory.mktemp("whole")
    result = harness_command(folder, *LONG, f"data.train={rows}", **ONE_THREAD)
    assert result.returncode == 0, result.stderr
    return losses(run_folder(result))


def losses(folder):
    """The training loss of each row of metrics.jsonl, with its step: a step that is there twice is there twice."""
    return [(row["step"], row["train/loss"]) for row in read(folder / "metrics.jsonl") if row["step"] > 0]


def start(folder, *arguments):
    """Starts a run in a folder and returns its process once it has saved a checkpoint."""
    command = [sys.executable, "-m", "harness", *arguments, f"hydra.run.dir={folder}"]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, cwd=folder.parent, env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, rows, whole_losses):
    process = start(tmp_path / "run", *LONG, f"data.train={rows}")
    process.kill()
    process.communicate(timeout=60)
    assert len(losses(tmp_path / "run")) < STEPS, "it was killed too late"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "running"
    result = harness_command(tmp_path, f"trainer.resume={tmp_path / 'run'}", **ONE_THREAD)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "run") == whole_losses
    assert [step for step, _ in whole_losses] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_130_and_its_folder(tmp_path, rows):
    process = start(tmp_path / "run", *LONG, f"data.train={rows}")
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert output.splitlines()[-1] == f"run: {tmp_path / 'run'}"
    assert "Traceback" not in error
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted" and status["exit_reason"] == "Preempted: SIGINT"


@pytest.mark.slow
def test_a_mistake_in_the_data_names_the_folder_and_shows_a_traceback_on_demand(tmp_path):
    result = harness_command(tmp_path, "data=jsonl", "data.train=nope.jsonl", HYDRA_FULL_ERROR="1", **ONE_THREAD)
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: data.train=nope.jsonl: no such file"
    assert json.loads((run_folder(result) / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_trial_of_a_multirun_goes_on_alone(tmp_path, rows):
    sweep = ["-m", "tuner.rank=choice(4)", *TEXT, f"data.train={rows}", "trainer.max_steps=1"]
    result = harness_command(tmp_path, *sweep, **ONE_THREAD)
    assert result.returncode == 0, result.stderr
    (trial,) = run_folder(result).glob("0_*")
    assert trial.name == "0_tuner.rank-4"
    result = harness_command(tmp_path, f"trainer.resume={trial}", "trainer.max_steps=3", **ONE_THREAD)
    assert result.returncode == 0, result.stderr
    assert run_folder(result) == trial
    assert [step for step, _ in losses(trial)] == [1, 2, 3]
    assert json.loads((trial / "adapter" / "adapter_config.json").read_text())["r"] == 4


WITHOUT_WANDB = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "wandb" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.mark.slow
def test_a_tracker_that_is_not_installed_ends_the_run_before_it_begins(tmp_path, rows):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_WANDB)
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    result = harness_command(tmp_path, "logging=wandb", *TEXT, f"data.train={rows}", PYTHONPATH=path, **ONE_THREAD)
    assert result.returncode == 2, result.stderr
    assert "logging=wandb: wandb is not installed or does not load" in result.stderr
    assert "Traceback" not in result.stderr and not (run_folder(result) / "checkpoints").exists()


@pytest.mark.slow
def test_two_processes_resume_as_one_run(tmp_path, rows):
    """Each has dropout of its own."""
    common = [*TEXT, f"data.train={rows}", "trainer.devices=2", "trainer.accelerator=cpu", "tuner.dropout=0.3"]
    common += ["trainer.max_steps=6", "trainer.save_every_steps=2", "trainer.keep_checkpoints=9"]
    result = harness_command(tmp_path, *common, **ONE_THREAD)
    assert result.returncode == 0, result.stderr
    folder = run_folder(result)
    expected = losses(folder)
    # As a kill after step 2 would have left it.
    (folder / "checkpoints" / "last").unlink()
    (folder / "checkpoints" / "last").symlink_to("step_2")
    result = harness_command(tmp_path, f"trainer.resume={folder}", **ONE_THREAD)
    assert result.returncode == 0, result.stderr
    assert losses(folder) == expected and len(expected) == 6


@pytest.mark.slow
def test_two_processes_train_as_one_where_one_has_no_image(tmp_path, rows):
    """Steps of text and image, of text alone, of image and text, of images alone."""
    common = [*TEXT, f"data.train={rows}", "data.shuffle=false", "tuner=full", "freeze=none", "trainer.max_steps=4"]
    curves = []
    for ranks in (["trainer.batch_size=2"], ["trainer.batch_size=1", "trainer.devices=2", "trainer.accelerator=cpu"]):
        result = harness_command(tmp_path, *common, *ranks, **ONE_THREAD)
        assert result.returncode == 0, result.stderr
        curves.append([loss for _, loss in losses(run_folder(result))])
    assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], abs=1e-5)
