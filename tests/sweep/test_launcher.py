"""A multirun from the command line: what runs, what is skipped, what goes on, and how it ends."""

import json
import os
import re
import signal
import time

import pytest

from harness.cores import usable
from harness.experiment.folder import RunFolder
from harness.sweep.folder import SweepFolder, state_of
from tests.sweep.fake_trial import DEAF, DIVERGES, FAILS, HUNGRY, MISTAKE

pytestmark = pytest.mark.slow

POOL = ("hydra/launcher=pool", "hydra.launcher.jobs=2", "trainer.accelerator=cpu")
SHORT = ("trainer.max_steps=3",)
LONG = ("trainer.max_steps=60",)


def attempts(sweep):
    return {trial.name: RunFolder(trial).read_status()["attempt"] for trial in sweep.trials()}


def summaries(sweep):
    return {trial.name: json.loads((trial / "summary.json").read_text()) for trial in sweep.trials()}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(sweep):
    return [RunFolder(trial).read_status().get("pid") for trial in sweep.trials()]


def test_a_second_start_skips_what_is_over_and_runs_what_is_new(sweep):
    first = sweep(*POOL, *SHORT, "optim.lr=1e-3,1e-2", f"seed=1,{FAILS},{DIVERGES},{MISTAKE}")
    assert first.returncode == 1, first.err
    assert len(sweep.trials()) == 8
    states = sorted(summary["status"] for summary in summaries(sweep).values())
    assert states == ["completed"] * 2 + ["diverged"] * 2 + ["failed"] * 4
    assert "[8/8]" in first.out and "RuntimeError: boom" in first.out and "8 trials, 2 at a time" in first.out
    record = json.loads((sweep.trials()[0] / "trial.json").read_text())
    assert record["number"] == 0 and record["overrides"][:2] == ["trainer.accelerator=cpu", "trainer.max_steps=3"]
    assert record["command"].startswith("python -m harness trainer.accelerator=cpu ")
    # One more value, another order, other loggers: the same trials, and two new ones.
    second = sweep(*SHORT, f"seed=7,{FAILS},1", "optim.lr=1e-3,1e-2", "trainer.accelerator=cpu", "data.workers=3")
    assert second.returncode == 1, second.err
    assert "6 trials, 4 over, 1 at a time: about 2 s" in second.out
    assert set(attempts(sweep).values()) == {1} and len(sweep.trials()) == 10
    numbers = [json.loads((trial / "trial.json").read_text())["number"] for trial in sweep.trials()]
    assert sorted(numbers) == list(range(10))
    third = sweep(*SHORT, "seed=7,1", "optim.lr=1e-3", "trainer.accelerator=cpu")
    assert third.returncode == 0 and "2 trials, 2 over" in third.out
    assert [line.split()[1] for line in third.out.splitlines() if "completed" in line]


def test_a_killed_sweep_leaves_no_process_and_goes_on_where_it_was(sweep):
    axes = ("optim.lr=1e-4,1e-3", "seed=1,2")
    process = sweep.start(*POOL, *LONG, *axes)
    deadline = time.monotonic() + 60
    while not any((trial / "metrics.jsonl").is_file() for trial in sweep.trials()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    begun = pids(sweep)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in begun if pid):
        assert time.monotonic() < deadline, "a trial outlived its launcher"
        time.sleep(0.05)
    before = {trial.name: state_of(RunFolder(trial)) for trial in sweep.trials()}
    assert set(before.values()) <= {"dead", "preempted", "completed", "waiting"}
    result = sweep(*POOL, *LONG, *axes)
    assert result.returncode == 0, result.err
    assert "(goes on)" in result.out
    found = summaries(sweep)
    assert len(found) == 4 and all(summary["steps"] == 60 for summary in found.values())
    for trial in sweep.trials():
        rows = [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, 61)), "steps that were done are not done again"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_trials_and_starts_no_more(sweep, number, code):
    process = sweep.start(*POOL, *LONG, "seed=1,2,3")
    deadline = time.monotonic() + 60
    while sum((trial / "metrics.jsonl").is_file() for trial in sweep.trials()) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, error = process.communicate(timeout=20)
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert [state_of(RunFolder(trial)) for trial in sweep.trials()] == ["preempted"] * 2
    assert output.splitlines()[-1] == f"run: {sweep.folder}"
    assert not SweepFolder(sweep.folder).is_locked


def test_a_second_signal_kills_what_does_not_listen(sweep):
    process = sweep.start(*POOL, *LONG, f"seed={DEAF}")
    deadline = time.monotonic() + 60
    while not any((trial / "metrics.jsonl").is_file() for trial in sweep.trials()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(2.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert [state_of(RunFolder(trial)) for trial in sweep.trials()] == ["dead"]


def test_each_trial_has_its_share_and_none_of_anothers_ranks(sweep):
    stray = {"RANK": "1", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1", "PL_GLOBAL_SEED": "3"}
    result = sweep(*POOL, *SHORT, "seed=1,2", **stray)
    assert result.returncode == 0, result.err
    for trial in sweep.trials():
        lines = (trial / "environment.txt").read_text().splitlines()
        own = dict(line.partition("=")[::2] for line in lines)
        assert not own.keys() & stray.keys()
        assert own["OMP_NUM_THREADS"] == str(max(1, usable() // 2))
        assert (trial / "console.log").read_text() == "done False\n"


def test_a_trial_that_takes_too_much_memory_is_killed_alone(sweep):
    result = sweep(*POOL, *LONG, f"seed=1,{HUNGRY}", "hydra.launcher.memory_gib=0.2")
    assert result.returncode == 1, result.err
    found = summaries(sweep)
    assert sorted(summary["status"] for summary in found.values()) == ["completed", "out_of_memory"]
    (reason,) = [summary["error"] for summary in found.values() if summary.get("error")]
    assert re.fullmatch(r"used 0\.\d\d GiB of host memory; hydra\.launcher\.memory_gib=0\.2", reason)


def test_all_mistakes_are_shown_before_the_first_trial_starts(sweep):
    result = sweep(*POOL, "tuner.rank=8,0", "optim.lr=-1,1e-3")
    assert result.returncode == 2 and not sweep.folder.exists()
    assert "error: in the trial" in result.err
    assert "tuner.rank=0: must be 1 or more" in result.err and "optim.lr=-1" in result.err


def test_two_sweeps_do_not_share_a_folder(sweep):
    folder = SweepFolder(sweep.folder)
    folder.lock()
    folder.write_plan([], [])
    result = sweep(*POOL, *SHORT, "seed=1,2")
    folder.unlock()
    assert result.returncode == 2
    assert f"a sweep runs in this folder (process {os.getpid()} on " in result.err
    assert not sweep.trials()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.launcher.jobs=0", "hydra.launcher.jobs=0: must be more than 0"),
        ("hydra.launcher.memory_gib=-1", "hydra.launcher.memory_gib=-1.0: must be more than 0"),
    ],
)
def test_a_launcher_can_not_be_of_nothing(sweep, override, message):
    result = sweep(*POOL, *SHORT, override, "seed=1,2")
    assert result.returncode == 2 and message in result.err and "Traceback" not in result.err


def test_hydras_own_launcher_is_refused(sweep):
    result = sweep("hydra/launcher=basic", *SHORT, "seed=1,2")
    assert result.returncode == 2 and "trains trials in one process; use serial or pool" in result.err


@pytest.mark.gpu
def test_trials_on_gpus_see_their_own_alone(sweep):
    """With as many trials as GPUs, each has one; what a trial sees is a name that the parent saw."""
    from harness.sweep.places import visible_gpus

    gpus = visible_gpus()
    result = sweep("hydra/launcher=pool", *SHORT, f"seed=range({len(gpus) + 1})")
    assert result.returncode == 0, result.err
    assert f"{len(gpus) + 1} trials, {len(gpus)} at a time" in result.out
    seen = [(trial / "environment.txt").read_text().splitlines() for trial in sweep.trials()]
    visible = [line.partition("=")[2] for lines in seen for line in lines if line.startswith("CUDA_VISIBLE_DEVICES=")]
    assert set(visible) == set(gpus) and len(visible) == len(gpus) + 1
