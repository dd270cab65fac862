"""Runs on two processes, whoever starts them, and how they end. Each case is a process tree of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import harness
from harness.logging.metrics import read

ROOT = Path(harness.__file__).parent.parent
TWO = ("trainer.devices=2", "trainer.accelerator=cpu")
BASE = ("data=jsonl", "data.workers=0", "trainer.batch_size=1", "trainer.log_every_steps=1", "optim.lr=1e-3")
BY_HAND = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d")
HARNESS = (sys.executable, "-m", "harness")

pytestmark = pytest.mark.slow


def environment(**more):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def call(folder, *command, **more):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(**more),
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def rows(tmp_path):
    """Eight rows; those with odd numbers, which the second of two ranks gets, have an image."""
    lines = []
    for number in range(8):
        Image.effect_noise((64, 64), 90).save(tmp_path / f"{number}.png")
        question = "<image>What is it?" if number % 2 else f"How much is {number} and {number}?"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"it is {2 * number}"}]
        lines.append({"messages": turns} | ({"images": [f"{number}.png"]} if number % 2 else {}))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [*BASE, f"data.train={tmp_path / 'train.jsonl'}", "data.shuffle=false"]


def the_run(folder, steps):
    """The only run folder below one, which has to be complete."""
    (run,) = (folder / "outputs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", steps)
    assert [row["step"] for row in read(run / "metrics.jsonl")] == list(range(1, steps + 1))
    assert (run / "ranks" / "rank_1.log").is_file() and not list(run.glob("ranks/*.json"))
    return run


def test_ranks_of_torchrun_share_one_run(tmp_path, rows):
    command = [*BY_HAND, "--rdzv-endpoint=127.0.0.1:0", "-m", "harness", *rows, *TWO, "trainer.max_steps=2"]
    result = call(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"run: {the_run(tmp_path, 2)}"


@pytest.mark.skipif(shutil.which("srun") is None, reason="needs SLURM")
def test_ranks_of_srun_share_one_run(tmp_path, rows):
    if call(tmp_path, "timeout", "10", "sinfo", "-h").returncode != 0:
        pytest.skip("no SLURM controller answers")
    result = call(tmp_path, "srun", "-n2", *HARNESS, *rows, *TWO, "trainer.max_steps=2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"run: {the_run(tmp_path, 2)}"
    refused = call(tmp_path, "srun", "-n2", *HARNESS, *rows, "trainer.max_steps=2")
    assert refused.returncode == 2 and "srun started 2 processes, 2 on a node; set trainer.devices=2" in refused.stderr


def test_two_nodes_by_hand_share_one_run(tmp_path, rows):
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    command = [*HARNESS, *rows, "trainer.nodes=2", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    nodes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(NODE_RANK=str(number), **address)) for number in (0, 1)
    ]
    assert [node.wait(timeout=600) for node in nodes] == [0, 0]
    the_run(tmp_path, 2)


def test_a_row_that_one_rank_can_not_read_is_shown_first(tmp_path, rows):
    """The other one waits in an exchange of gradients."""
    whole = (tmp_path / "7.png").read_bytes()
    half = len(whole) // 2
    # The header and the length are right, and so it is found where it is decoded.
    (tmp_path / "7.png").write_bytes(whole[:half] + bytes([255] * 64) + whole[half + 64 :])
    result = call(tmp_path, *HARNESS, *rows, *TWO, "trainer.max_steps=8")
    assert result.returncode == 2, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert error.startswith("error: rank 1: ") and "7.png" in error
    assert "Traceback" not in result.stderr
    run = Path(result.stdout.splitlines()[-1].removeprefix("run: "))
    assert json.loads((run / "status.json").read_text())["exit_reason"].startswith("rank 1: ")


def rank_pids(supervisor):
    """Process ids by rank."""
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    variables = {pid: Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in children}
    return {
        int(found[5:]): int(pid) for pid, items in variables.items() for found in items if found.startswith("RANK=")
    }


@pytest.mark.parametrize("end", ["kill", "term"])
def test_a_run_in_the_middle_ends_whole(tmp_path, rows, end):
    run = tmp_path / "run"
    command = [*HARNESS, *rows, *TWO, "trainer.max_steps=5000", f"hydra.run.dir={run}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, cwd=tmp_path, env=environment())
    while not (run / "metrics.jsonl").is_file() or len(read(run / "metrics.jsonl")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    ranks = rank_pids(process)
    assert ranks.keys() == {0, 1}
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL) if end == "kill" else process.terminate()
    output, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert output.splitlines()[-1] == f"run: {run}"
    status = json.loads((run / "status.json").read_text())
    if end == "kill":
        assert process.returncode == 1 and status["state"] == "failed"
        (shown,) = [line for line in error.splitlines() if line.startswith("error:")]
        assert shown.startswith("error: rank 1 failed first: killed by SIGKILL")
        assert status["exit_reason"].startswith("rank 1: killed by SIGKILL")
    else:
        assert process.returncode == 143 and "Traceback" not in error
        assert (status["state"], status["exit_reason"]) == ("preempted", "SIGTERM")


SWEEPER = """
import json
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class Climber(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        Path("seen.json").write_text("[]")
        lr, factor, last = 1e-4, 10.0, None
        for number in range(3):
            (job,) = self.launcher.launch([[*arguments, f"optim.lr={lr:g}"]], initial_job_idx=number)
            value = job.return_value
            Path("seen.json").write_text(json.dumps([*json.loads(Path("seen.json").read_text()), [lr, value]]))
            factor = factor if last is None or value < last else 1 / factor
            lr, last = lr * factor, value


@dataclass
class ClimberConfig:
    _target_: str = "hydra_plugins.climber.Climber"


ConfigStore.instance().store(group="hydra/sweeper", name="climber", node=ClimberConfig)
"""
DIGEST = """
import os, sys
from importlib.machinery import PathFinder

def patch(module):
    import hashlib, json
    def on_train_end(self):
        weights = [p.detach() for p in self.parameters() if p.requires_grad]
        digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in weights)).hexdigest()
        seen = {"pid": os.getpid(), "world_size": self.trainer.world_size, "lr": self.lr, "digest": digest}
        with open(f"digests_{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(seen) + "\\n")
    module.TrainingModule.on_train_end = on_train_end

class Patching(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "harness.trainer.module":
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), patch(module))
        return spec

sys.meta_path.insert(0, Patching)
"""


def test_an_adaptive_sweep_trains_each_trial_on_two_processes(tmp_path, rows):
    """Each trial's point comes from the values of those before it; variables of another run are about."""
    (tmp_path / "hydra_plugins" / "climber").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "climber" / "__init__.py").write_text(SWEEPER)
    (tmp_path / "sitecustomize.py").write_text(DIGEST)
    val = f"data.val={tmp_path / 'train.jsonl'}"
    stray = {"MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": "3", "PL_GLOBAL_SEED": "7"}
    result = call(
        tmp_path,
        *(
            *HARNESS,
            "-m",
            "hydra/sweeper=climber",
            *rows,
            *TWO,
            val,
            "trainer.max_steps=2",
            "trainer.val_at_start=false",
        ),
        **{**stray, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert result.returncode == 0, result.stderr
    trials = sorted(Path(result.stdout.splitlines()[-1].removeprefix("run: ")).glob("[0-9]*"))
    losses = [json.loads((trial / "summary.json").read_text())["val"]["val/loss"] for trial in trials]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [value for _, value in seen] == losses and len(losses) == 3
    assert seen[1][0] == pytest.approx(1e-3)
    assert seen[2][0] == pytest.approx(1e-2 if losses[1] < losses[0] else 1e-4)
    ranks = [
        [json.loads(line) for line in (tmp_path / f"digests_{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    ]
    for (lr, _), first, second in zip(seen, *ranks, strict=True):
        assert first["world_size"] == second["world_size"] == 2 and first["pid"] != second["pid"]
        assert first["lr"] == second["lr"] == pytest.approx(lr)
        assert first["digest"] == second["digest"]
    assert len({item["digest"] for item in ranks[0]}) >= 2
