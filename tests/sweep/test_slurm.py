"""Sweeps through a real SLURM of one node: arrays, a requeue, preemption, a launcher that is killed."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UserError
from harness.sweep.plugin import SlurmConf
from harness.sweep.slurm_queue import SlurmQueue, check, script
from harness.trainer.standard import Accelerator
from tests.sweep import local_slurm
from tests.sweep.conftest import status, steps, wait_for
from tests.sweep.fake_trial import FAILS

CHOICE = ("hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5", "trainer.accelerator=cpu")
LONG = 100
missing = [name for name in (*local_slurm.PROGRAMS, "sbatch") if shutil.which(name) is None]


def with_slurm(test):
    """Marks a test that needs the real thing."""
    reason = pytest.mark.skipif(bool(missing) or os.geteuid() != 0, reason="needs slurm-wlm and munge, as root")
    return pytest.mark.slow(pytest.mark.xdist_group("slurm")(reason(test)))


@pytest.fixture(scope="module")
def slurm():
    # Sockets have short names.
    folder = Path(f"/tmp/slurm_{os.getpid()}")
    yield local_slurm.up(folder)
    local_slurm.down(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run(slurm, *command):
    return subprocess.run(command, env=os.environ | slurm, capture_output=True, text=True, check=True).stdout


def job(trial):
    return json.loads((trial / "slurm.json").read_text())["job"]


def finished(process):
    out, err = process.communicate(timeout=100)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


@with_slurm
def test_trials_are_one_array_and_a_failed_one_takes_no_other(sweep, slurm):
    done = sweep(*CHOICE, "trainer.max_steps=3", f"seed=1,2,{FAILS}", **slurm)
    assert done.returncode == 1, done.err
    assert "3 trials" in done.out and "[3/3]" in done.out and "RuntimeError: boom" in done.out
    assert len({job(trial).partition("_")[0] for trial in sweep.trials()}) == 1
    assert sorted(status(trial)["state"] for trial in sweep.trials()) == ["completed", "completed", "failed"]
    again = sweep(*CHOICE, "trainer.max_steps=3", "seed=1,2", **slurm)
    assert again.returncode == 0 and "2 trials, 2 over" in again.out


@with_slurm
def test_a_job_whose_time_is_over_is_requeued_and_goes_on(sweep, slurm):
    process = sweep.start(*CHOICE, f"trainer.max_steps={LONG}", "seed=1", "optim.lr=1e-3", **slurm)
    wait_for(lambda: sweep.trials() and len(steps(sweep.trials()[0])) > 3)
    (only,) = sweep.trials()
    run(slurm, "scancel", "--batch", "--signal=USR1", job(only))
    done = finished(process)
    assert done.code == 0, done.err
    assert status(only)["attempt"] == 2 and steps(only) == list(range(1, LONG + 1))


@with_slurm
def test_a_preempted_job_goes_on_when_there_is_room(sweep, slurm):
    choice = (*CHOICE, "hydra.launcher.partition=low", "hydra.launcher.cpus=2")
    process = sweep.start(*choice, f"trainer.max_steps={4 * LONG}", "seed=1", "optim.lr=1e-3", **slurm)
    wait_for(lambda: sweep.trials() and len(steps(sweep.trials()[0])) > 3)
    (only,) = sweep.trials()
    run(slurm, "sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap", "sleep 2")
    done = finished(process)
    assert done.code == 0, done.err
    assert status(only)["attempt"] == 2 and steps(only) == list(range(1, 4 * LONG + 1))


@with_slurm
def test_a_launcher_that_was_killed_finds_its_jobs_again(sweep, slurm):
    command = (*CHOICE, f"trainer.max_steps={LONG}", "seed=1,2", "optim.lr=1e-3")
    process = sweep.start(*command, **slurm)
    wait_for(lambda: len(sweep.trials()) == 2 and all(map(steps, sweep.trials())))
    process.kill()
    process.communicate()
    jobs = [job(trial) for trial in sweep.trials()]
    done = sweep(*command, **slurm)
    assert done.returncode == 0, done.err
    assert done.out.count("(goes on)") == 2
    assert [job(trial) for trial in sweep.trials()] == jobs
    assert [status(trial)["attempt"] for trial in sweep.trials()] == [1, 1]


@with_slurm
def test_ctrl_c_cancels_all_jobs_and_they_stay_cancelled(sweep, slurm):
    process = sweep.start(*CHOICE, f"trainer.max_steps={10 * LONG}", "seed=1,2,3", **slurm)
    wait_for(lambda: len(sweep.trials()) == 3 and sum(map(bool, map(steps, sweep.trials()))) == 2)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.code == 130 and "SIGINT" in done.out, done.out + done.err
    time.sleep(1)
    assert run(slurm, "squeue", "--noheader", "--states=PENDING,RUNNING") == ""
    states = [status(trial).get("state", "waiting") for trial in sweep.trials()]
    assert sorted(states) == ["preempted"] * 2 + ["waiting"]


@with_slurm
def test_a_ctrl_c_reaches_jobs_of_an_earlier_launcher(sweep, slurm):
    command = (*CHOICE, f"trainer.max_steps={10 * LONG}", "seed=1", "optim.lr=1e-3")
    process = sweep.start(*command, **slurm)
    wait_for(lambda: sweep.trials() and steps(sweep.trials()[0]))
    process.kill()
    process.communicate()
    process = sweep.start(*command, **slurm)
    assert any("(goes on)" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.code == 130, done.err
    assert status(sweep.trials()[0])["state"] == "preempted"


@pytest.mark.parametrize(
    "name", ["it's $HOME.txt", 'a"; touch made; "', "$(touch made)", "`touch made`", "a && b | c > d"]
)
def test_the_script_quotes_paths_and_leaves_the_users_lines_alone(tmp_path, name):
    listed = tmp_path / name
    text = script(SlurmConf(setup=["module load cuda && echo $HOSTNAME"]), listed)
    first, setup, job, end = text.split("\n")
    assert (first, setup, end) == ("#!/bin/bash", "module load cuda && echo $HOSTNAME", "")
    shown = ["bash", "-c", job.replace("exec ", "printf '%s\\n' ", 1)]
    words = subprocess.run(shown, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    assert words[-3:] == ["harness.sweep.slurm_job", str(listed), "requeue"] and list(tmp_path.iterdir()) == []


def test_options_become_those_of_sbatch(tmp_path):
    trainer = SimpleNamespace(devices=4, accelerator=Accelerator.gpu)
    trials = [SimpleNamespace(config=SimpleNamespace(trainer=trainer))] * 3
    options = SlurmConf(partition="a100", time="4:00:00", memory_gib=1.5, max_parallel=2, options=["--exclusive"])
    arguments = SlurmQueue(options, tmp_path)._arguments(trials, tmp_path)
    expected = {"--array=0-2%2", "--partition=a100", "--time=4:00:00", "--mem=1536M", "--gres=gpu:4", "--exclusive"}
    assert expected | {"--requeue", "--signal=B:USR1@120"} <= set(arguments)
    assert not any(item.startswith(("--account", "--qos", "--cpus")) for item in arguments)


def test_what_looks_like_shell_stays_one_option_of_sbatch(tmp_path):
    trainer = SimpleNamespace(devices=1, accelerator=Accelerator.cpu)
    hostile = "a; rm -rf $(pwd) --wrap=`id` 'b"
    folder = tmp_path / hostile
    arguments = SlurmQueue(SlurmConf(partition=hostile, account=hostile), folder)._arguments(
        [SimpleNamespace(config=SimpleNamespace(trainer=trainer))], folder
    )
    assert {f"--partition={hostile}", f"--account={hostile}", f"--job-name={hostile}"} <= set(arguments)
    assert all(item.startswith("--") for item in arguments) and "--wrap=`id`" not in arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SlurmConf(max_parallel=0), r"hydra\.launcher\.max_parallel=0: must be more than 0"),
        (SlurmConf(poll_seconds=-1), r"hydra\.launcher\.poll_seconds=-1: must be more"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(UserError, match=message):
        check(options)


def test_without_slurm_it_says_where_to_go(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="hydra/launcher=slurm: there is no sbatch here"):
        check(SlurmConf())
