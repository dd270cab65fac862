"""Sweeps through a real Ray cluster of one node: a failed trial, Ctrl-C, a worker that is lost."""

import importlib.util
import signal

import psutil
import pytest

from harness.errors import UserError
from harness.sweep.plugin import RayConf
from harness.sweep.ray_queue import connect
from tests.sweep.conftest import status, steps, wait_for
from tests.sweep.fake_trial import FAILS

CHOICE = ("hydra/launcher=ray", "hydra.launcher.address=local", "trainer.accelerator=cpu")
LONG = 100


def with_ray(test):
    """Marks a test that needs the real thing."""
    reason = "extra ray"
    return pytest.mark.slow(pytest.mark.skipif(not _has_ray(), reason=reason)(test))


def _has_ray():
    return importlib.util.find_spec("ray") is not None


@with_ray
def test_a_failed_trial_takes_no_other_and_what_is_over_stays_so(sweep):
    done = sweep(*CHOICE, "trainer.max_steps=3", f"seed=1,2,{FAILS}")
    assert done.returncode == 1, done.err
    assert "3 trials" in done.out and "[3/3]" in done.out and "RuntimeError: boom" in done.out
    assert sorted(status(trial)["state"] for trial in sweep.trials()) == ["completed", "completed", "failed"]
    assert all("done" in (trial / "console.log").read_text() for trial in sweep.trials()[:2])
    again = sweep(*CHOICE, "trainer.max_steps=3", "seed=1,2")
    assert again.returncode == 0 and "2 trials, 2 over" in again.out


@with_ray
def test_after_ctrl_c_trials_have_saved_and_go_on(sweep):
    command = (*CHOICE, f"trainer.max_steps={LONG}", "seed=1,2", "optim.lr=1e-3")
    process = sweep.start(*command)
    wait_for(lambda: len(sweep.trials()) == 2 and all(map(steps, sweep.trials())))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [status(trial)["state"] for trial in sweep.trials()] == ["preempted"] * 2
    done = sweep(*command)
    assert done.returncode == 0, done.err
    assert all(steps(trial) == list(range(1, LONG + 1)) for trial in sweep.trials())


@with_ray
def test_a_trial_whose_worker_is_lost_goes_on_in_another(sweep):
    process = sweep.start(*CHOICE, f"trainer.max_steps={LONG}", "seed=1", "optim.lr=1e-3")
    wait_for(lambda: sweep.trials() and len(steps(sweep.trials()[0])) > 3)
    (only,) = sweep.trials()
    (trial,) = (item for item in psutil.process_iter(["cmdline"]) if (item.info["cmdline"] or [""])[-1] == str(only))
    trial.parent().kill()
    process.communicate(timeout=100)
    assert process.returncode == 0
    assert status(only)["attempt"] == 2 and steps(only) == list(range(1, LONG + 1))


@pytest.mark.parametrize("options", [{"cpus": 0}, {"gpus": -1.0}, {"retries": -1}, {"max_parallel": 0}])
def test_what_is_out_of_range_is_refused(options):
    (key,) = options
    with pytest.raises(UserError, match=rf"hydra\.launcher\.{key}={options[key]}: must be"):
        connect(RayConf(**options))


@pytest.mark.skipif(_has_ray(), reason="it is here")
def test_without_ray_the_extra_is_named():
    with pytest.raises(UserError, match=r"hydra/launcher=ray: ray is not installed .*\.\[ray\]"):
        connect(RayConf())


@with_ray
def test_without_a_cluster_it_says_how_to_get_one(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"hydra\.launcher\.address=null: no Ray cluster answers: .*address=local"):
        connect(RayConf())
