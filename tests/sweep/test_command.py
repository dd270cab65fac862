"""`python -m harness.sweep`: status, retry and cancel."""

import json
import os
import signal
import time

import pytest

from harness.experiment.folder import RunFolder, write_json
from harness.sweep.__main__ import main
from harness.sweep.folder import Record, SweepFolder, state_of, write_record
from tests.sweep.fake_trial import FAILS


@pytest.fixture
def swept(tmp_path):
    """One trial is over, one failed, one runs here, one died, one waits, one is of another command."""
    sweep = SweepFolder(tmp_path)
    names = ("completed", "failed", "running", "dead", "other")
    held = []
    for number, name in enumerate(names):
        run = RunFolder(tmp_path / f"{number}_{name}")
        run.path.mkdir()
        run.begin_attempt()
        write_record(Record(identity=name, number=number, overrides=["a=1"], command="", folder=run))
        if name in ("completed", "failed"):
            write_json(run.summary, {"status": name, "val": {"val/loss": 0.5}, "wall_time_s": 3.0})
            run.write_status(state=name, exit_reason="boom" if name == "failed" else None)
        if name == "running":
            run.lock()
            held.append(run)
    asked = [*names[:-1], "waiting"]
    sweep.write_plan(
        ["-m", "tuner.rank=4,8", "hydra.sweep.dir=x"],
        [{"identity": name, "number": number, "overrides": ["b=2"]} for number, name in enumerate(asked)],
    )
    yield sweep
    for run in held:
        run.unlock()


def test_each_state_is_read_from_files(swept, capsys):
    assert main(["status", str(swept.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[1]: line for line in lines if line[:1].isdigit()}
    assert list(table) == ["completed", "failed", "running", "dead", "waiting"]
    assert "0.5" in table["completed"] and "boom" in table["failed"] and "b=2" in table["waiting"]
    assert lines[-1].endswith("not running; 1 completed, 1 dead, 1 failed, 1 running, 1 waiting, 1 of other commands")


def test_retry_starts_the_command_again_with_failed_trials_waiting(swept, monkeypatch):
    seen = []

    def become(path, arguments):
        seen.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    with pytest.raises(SystemExit):
        main(["retry", str(swept.path)])
    assert seen[0][1:] == ["-m", "harness", "-m", "tuner.rank=4,8", f"hydra.sweep.dir={swept.path}"]
    states = [state_of(record.folder) for record in swept.records()]
    assert states == ["completed", "waiting", "running", "dead", "dead"]
    assert not (swept.path / "1_failed" / "summary.json").exists()


@pytest.mark.parametrize("action", ["status", "retry", "cancel"])
def test_a_folder_that_is_no_sweep_is_a_mistake(tmp_path, capsys, action):
    assert main([action, str(tmp_path)]) == 2
    assert "no sweep; its folder holds a sweep.json" in capsys.readouterr().err


def test_what_does_not_run_can_not_be_cancelled(swept, capsys):
    assert main(["cancel", str(swept.path)]) == 2
    assert "no sweep runs in this folder" in capsys.readouterr().err


def test_what_runs_is_not_retried_and_what_runs_elsewhere_not_cancelled(swept, capsys):
    swept.lock()
    assert main(["retry", str(swept.path)]) == 2
    write_json(swept.plan, swept.read_plan() | {"host": "elsewhere"})
    assert main(["cancel", str(swept.path)]) == 2
    swept.unlock()
    error = capsys.readouterr().err
    assert "the sweep is running" in error and "runs on elsewhere: cancel it there" in error


@pytest.mark.slow
def test_cancel_ends_a_sweep_that_runs_and_retry_marks_what_failed(sweep):
    process = sweep.start("hydra/launcher=pool", "trainer.accelerator=cpu", "trainer.max_steps=60", f"seed={FAILS},1")
    deadline = time.monotonic() + 60
    while sum((trial / "metrics.jsonl").is_file() for trial in sweep.trials()) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert main(["cancel", str(sweep.folder)]) == 0
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert {state_of(RunFolder(trial)) for trial in sweep.trials()} <= {"preempted", "failed"}
    assert len(json.loads((sweep.folder / "sweep.json").read_text())["trials"]) == 2
