"""Two GPUs of one machine over NCCL, by the command line: `pytest -m multi_gpu tests/experiment`."""

import json
import os
import signal
import subprocess
import time

import pytest

from harness.logging.metrics import read
from tests.experiment.test_processes import HARNESS, environment, rank_pids

pytestmark = pytest.mark.multi_gpu
STEPS = 60
COMMON = (
    *("model.dtype=bfloat16", "trainer.log_every_steps=1", "trainer.val_at_start=false", "trainer.batch_size=8"),
    *(f"trainer.max_steps={STEPS}", "data.workers=0", "data.train_rows=256", "data.generation.enabled=false"),
)


def losses(run):
    return {row["step"]: row["train/loss"] for row in read(run / "metrics.jsonl") if "train/loss" in row}


def begin(run, *overrides):
    command = [*HARNESS, *COMMON, *overrides, f"hydra.run.dir={run}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_killed_rank_ends_the_job_and_the_resumed_one_has_the_same_curve(tmp_path, strategy):
    own = (f"memory/strategy={strategy}", "trainer.devices=2", "tuner=lora", "tuner.dropout=0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = begin(whole, *own)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    process = begin(killed, *own, "trainer.save_every_steps=5")
    # NCCL waits for the dead one in a collective.
    while not (killed / "metrics.jsonl").is_file() or len(losses(killed)) < 12:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    ranks = rank_pids(process)
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 60 and process.returncode == 1
    assert "error: rank 1 failed first: killed by SIGKILL" in error
    assert len(losses(killed)) < STEPS and not any(os.path.exists(f"/proc/{pid}") for pid in ranks.values())
    resumed = subprocess.run(
        [*HARNESS, f"trainer.resume={killed}"], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert resumed.returncode == 0, resumed.stderr
    assert losses(killed) == pytest.approx(losses(whole), rel=3e-2) and len(losses(whole)) == STEPS


def test_a_pool_gives_each_trial_a_gpu_of_its_own(tmp_path):
    sweep = tmp_path / "sweep"
    command = [*HARNESS, "-m", *COMMON, "tuner=lora", "seed=1,2", "hydra/launcher=pool", f"hydra.sweep.dir={sweep}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    devices = [json.loads(path.read_text())["device"] for path in sweep.glob("*/environment.json")]
    assert [device["count"] for device in devices] == [1, 1] and len({device["uuid"] for device in devices}) == 2
    began, ended = (
        [path.stat().st_mtime for path in sweep.glob(f"*/{name}.json")] for name in ("environment", "summary")
    )
    assert max(began) < min(ended)
