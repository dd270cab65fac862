"""Trials that follow each other in one process are those that each would have been in its own."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

from harness.experiment.folder import RunFolder
from harness.logging.metrics import read
from harness.sweep.folder import state_of
from tests.sweep.conftest import ROOT

pytestmark = pytest.mark.slow
MORTAL = str(ROOT / "tests" / "sweep" / "mortal_command.py")
QUICK = [
    *("trainer.max_steps=4", "trainer.accelerator=cpu", "trainer.batch_size=4", "trainer.log_every_steps=1"),
    *("trainer.val_at_start=false", "trainer.val_batch_size=128", "data.train_rows=32", "data.workers=0"),
    *("data.generation.enabled=false", "trainer.monitor=val/loss", "optim.lr=1e-3"),
]
METHODS = {
    "a_lora": ["tuner=lora"],
    "b_dora": ["tuner=dora", "seed=7"],
    "c_full": ["tuner=full", "freeze=none"],
    "d_pissa": ["tuner=lora", "tuner.init=pissa"],
    "e_half": ["tuner=lora", "model.dtype=bfloat16"],
    "f_tokens": ["tuner=lora", 'model.new_special_tokens=["<cat>"]', "model.train_new_tokens=true"],
    "g_lora": ["tuner=lora", "tuner.dropout=0.2", "memory.checkpointing=full", "model.attention=eager"],
    "h_lora": ["tuner=lora", "trainer.accumulate=2"],
}


def start(folder, *arguments, command=("-m", "harness")):
    options = ["-m", "hydra/launcher=pool", f"hydra.sweep.dir={folder}", *arguments]
    return subprocess.run(
        [sys.executable, *command, *options],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def summary(run):
    return json.loads(run.summary.read_text())


def runs(folder):
    """Returns run folders by the method's place."""
    found = sorted(folder.glob("*/trial.json"), key=lambda path: json.loads(path.read_text())["number"])
    return [RunFolder(path.parent) for path in found]


def printed(run):
    """Returns what a run printed, without what time and folders make of it."""
    lines = (run.path / "console.log").read_text().replace(str(run.path.parent), "").splitlines()
    return [re.sub(r"\S*\d\S* tok.*?(?=val|$)|[\d,]+ tokens/s.*|in [\d.]+ s$", "", line) for line in lines]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same study warm, in one worker, and in a process for each trial."""
    folder = tmp_path_factory.mktemp("warm")
    study = folder / "methods.yaml"
    study.write_text(yaml.safe_dump({"question": "q", "base": QUICK, "methods": METHODS, "metric": "val/loss"}))
    warm = start(folder / "warm", f"+sweep={study}", "hydra.launcher.warm=true", "hydra.launcher.jobs=1")
    cold = start(folder / "cold", f"+sweep={study}", "hydra.launcher.jobs=2")
    assert warm.returncode == cold.returncode == 0, warm.stderr + cold.stderr
    return runs(folder / "warm"), runs(folder / "cold")


def test_losses_weights_and_output_are_equal_to_the_last_bit(both):
    same = ("status", "config_hash", "steps", "tokens", "train_loss", "val", "best", "trainable_parameters", "data")
    assert len(both[0]) == len(METHODS)
    for name, warm, cold in zip(METHODS, *both, strict=True):
        assert summary(warm).keys() == summary(cold).keys()
        for key in same:
            assert summary(warm)[key] == summary(cold)[key], (name, key)
        for mine, theirs in zip(read(warm.metrics), read(cold.metrics), strict=True):
            assert mine.keys() == theirs.keys()
            results = [key for key in mine if key.startswith(("train/", "val/"))]
            assert [mine[key] for key in results] == [theirs[key] for key in results], (name, mine["step"])
        for file in sorted(cold.path.glob("*/*model.safetensors")):
            mine, theirs = load_file(warm.path / file.relative_to(cold.path)), load_file(file)
            assert mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in theirs), name
        assert printed(warm) == printed(cold), name
        files = [{path.relative_to(run.path) for path in run.path.rglob("*")} for run in (warm, cold)]
        assert files[0] == files[1]


def test_one_process_ran_them_all_and_says_what_it_reused(both):
    warm, cold = both
    assert len({run.read_status()["pid"] for run in warm}) == 1
    assert len({run.read_status()["pid"] for run in cold}) == len(METHODS)
    assert {summary(run)["warm"] is None for run in cold} == {True}
    found = dict(zip(METHODS, (summary(run)["warm"] for run in warm), strict=True))
    assert [item["trials_before"] for item in found.values()] == list(range(len(METHODS)))
    reused = {name: item["weights_gib"] for name, item in found.items()}
    # After full training, and where the type is another or was, all is read again; after pissa what it changed in W.
    assert {name for name, gib in reused.items() if gib == 0} == {"a_lora", "d_pissa", "e_half", "f_tokens"}
    assert 0 < reused["g_lora"] < reused["b_dora"] == reused["c_full"] == reused["h_lora"]
    for mine, theirs in zip(warm[1:], cold[1:], strict=True):
        assert summary(mine)["startup_time_s"] < summary(theirs)["startup_time_s"] / 2


def test_a_trial_that_dies_takes_no_other_with_it(tmp_path):
    options = ["hydra.launcher.warm=true", "hydra.launcher.jobs=1", *QUICK, "seed=1,13,2,14,3"]
    result = start(tmp_path / "sweep", *options, command=[MORTAL])
    assert result.returncode == 1, result.stderr
    found = runs(tmp_path / "sweep")
    assert [state_of(run) for run in found] == ["completed", "dead", "completed", "dead", "completed"]
    assert "killed by SIGKILL" in found[1].read_status()["exit_reason"] and "exit code 7" in result.stdout
    pids = [run.read_status()["pid"] for run in found]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    again = start(tmp_path / "sweep", *options)
    assert again.returncode == 0 and [state_of(run) for run in runs(tmp_path / "sweep")] == ["completed"] * 5


def test_a_mistake_ends_its_worker_with_its_code(tmp_path):
    options = ["hydra.launcher.warm=true", "hydra.launcher.jobs=1", *QUICK, "seed=1", "data.max_length=4,null"]
    result = start(tmp_path / "sweep", *options)
    assert result.returncode == 2, result.stderr
    failed, completed = runs(tmp_path / "sweep")
    assert summary(failed)["error"].startswith("UserError") and summary(completed)["warm"]["trials_before"] == 0
    assert (failed.path / "console.log").read_text().splitlines()[-1] == f"run: {failed.path}"
