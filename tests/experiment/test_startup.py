"""The start of a run: its phases, what the launcher imports, and that nothing waits for weights it does not need."""

import json
import subprocess
import sys
import threading
import time

import pytest

from harness import config
from harness.compose import compose_config
from harness.experiment.startup import Phase, Startup
from harness.logging.metrics import read
from harness.model import weights


def test_phases_add_up_to_the_time_to_the_first_step():
    startup = Startup(time.monotonic() - 5)
    for phase in Phase:
        startup.end(phase)
    seconds = startup.seconds(time.monotonic() + 2)
    assert list(seconds) == ["imports", "data", "model", "tuner", "trainer", "first_step"]
    assert seconds["imports"] == pytest.approx(5, abs=0.5) and seconds["first_step"] == pytest.approx(2, abs=0.5)
    assert sum(seconds.values()) == pytest.approx(7, abs=0.5)


def test_the_summary_tells_them_apart(run):
    folder, code = run("a", "trainer.max_steps=1", "trainer.val_at_start=false")
    summary = json.loads(folder.summary.read_text())
    assert code == 0
    assert sum(summary["startup"].values()) == pytest.approx(summary["startup_time_s"])
    assert set(summary["startup"]) == {*(phase.name for phase in Phase), "first_step"}
    assert summary["wall_time_s"] >= summary["startup_time_s"] + summary["finish_time_s"] > summary["startup_time_s"]


def imported(modules: str, candidates: list[str]) -> list[str]:
    """Returns which packages are there after an import in a fresh process."""
    code = f"import sys, {modules}; from harness import registry; registry.load(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [name for name in candidates if name in done.stdout.split()]


def test_the_launcher_imports_nothing_heavy():
    """It replaces itself by the trial: what both import is imported twice."""
    heavy = ["torch", "transformers", "numpy", "lightning", "peft", "datasets", "sklearn", "matplotlib", "wandb"]
    assert not imported("harness.__main__", heavy)


def test_weights_are_read_before_most_packages_are_imported():
    modules = "harness.experiment.trial, harness.model.weights"
    assert imported(modules, ["torch", "transformers", "lightning", "peft", "datasets"]) == ["torch"]


@pytest.fixture
def slow_reading(monkeypatch):
    """Tensors take so long that the tiny checkpoint's 121 take twelve seconds in four threads."""
    read_so_far = []

    def wait(self, tensor):
        read_so_far.append(tensor)
        time.sleep(0.4)
        return tensor

    monkeypatch.setattr(weights.Weights, "_converted", wait)
    return read_so_far


def test_a_mistake_in_the_data_does_not_wait_for_the_weights(run, tmp_path, slow_reading, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "response": "b"}\n{"query": 3}\n', encoding="utf-8")
    folder, code = run("a", "data=jsonl", f"data.train={rows}")
    assert code == 2 and "rows.jsonl:2" in capsys.readouterr().err
    assert 0 < len(slow_reading) < 60
    assert not [thread for thread in threading.enumerate() if thread.name == "weights"]
    assert json.loads(folder.summary.read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_process_that_ends_early_leaves_neither_workers_nor_readers(tmp_path):
    """The mistake shows when workers make batches and weights are there: the tuner finds its target nowhere."""
    overrides = ["data.workers=2", "tuner.target_modules=[nowhere]", "trainer.max_steps=2", "data.cache_dir=null"]
    config.save(compose_config(overrides), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "harness.experiment.trial", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_workers_that_start_early_change_nothing(run):
    losses = []
    for workers in (0, 2):
        folder, code = run(
            f"w{workers}", f"data.workers={workers}", "trainer.max_steps=2", "trainer.val_at_start=false"
        )
        assert code == 0
        losses.append([row["train/loss"] for row in read(folder.metrics)])
    assert losses[0] == losses[1]
