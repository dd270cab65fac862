"""Whole runs on two processes over gloo, against the same run on one: `pytest -m slow tests/memory/strategy`."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import harness
from harness import config, registry
from harness.compose import compose_config
from harness.experiment.folder import RunFolder
from harness.logging.metrics import read
from harness.memory.strategy.parallel import Ranks

ROOT = Path(harness.__file__).parent.parent
RANKS = Path(__file__).parent / "ranks.py"
TUNERS = {
    "lora": ("tuner=lora", "tuner.dropout=0"),
    "dora": ("tuner=dora", "tuner.dropout=0"),
    "full": ("tuner=full", "freeze=none"),
}
COMMON = (
    "data=jsonl",
    "data.shuffle=false",
    "data.workers=0",
    "data.cache_dir=null",
    "data.generation.enabled=true",
    "data.generation.max_new_tokens=2",
    "trainer.accelerator=cpu",
    "trainer.val_batch_size=3",
    "trainer.max_steps=20",
    "trainer.val_every_steps=20",
    "trainer.save_every_steps=10",
    "optim.lr=1e-3",
)
GLOBAL_BATCH = 4


@dataclass
class Group:
    """Runs trials in folders of their own, all of a call in one group of processes."""

    home: Path
    rows: Path
    done: dict[str, RunFolder] = field(default_factory=dict)

    def prepare(self, name: str, num_ranks: int, *overrides: str) -> str:
        """Freezes the config of a trial."""
        batch = f"trainer.batch_size={GLOBAL_BATCH // num_ranks}"
        data = [f"data.train={self.rows / 'train.jsonl'}", f"data.val={self.rows / 'val.jsonl'}"]
        folder = self.done[name] = RunFolder(self.home / name)
        folder.path.mkdir(exist_ok=True)
        composed = compose_config([*COMMON, *data, batch, f"trainer.devices={num_ranks}", *overrides])
        config.save(composed, folder.config)
        return str(folder.path)

    def run(self, num_ranks: int, *arguments: str) -> None:
        """Starts `ranks.py` on each rank and waits for all."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MEETING_PORT": str(free.getsockname()[1])}
        shared |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "NODE_RANK": "0"}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        shared |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        logs = [self.home / f"rank{rank}.log" for rank in range(num_ranks)]
        processes = []
        for rank, log in enumerate(logs):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(log, "w") as file:
                command = [sys.executable, str(RANKS), *arguments]
                processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout=600) for process in processes]
        finally:
            for process in processes:
                process.kill()
        told = [*logs, *(path for name in arguments for path in Path(name.partition("@")[0]).glob("ranks/*.json"))]
        assert not any(codes), "\n".join(path.read_text()[-3000:] for path in told)

    def together(self, num_ranks: int, cases: dict[str, tuple[str, ...]], *, resume: bool) -> None:
        """Runs cases, and each from the middle again, as a kill after step 10 would have left it."""
        folders = [self.prepare(name, num_ranks, *overrides) for name, overrides in cases.items()]
        arguments = [argument for path in folders for argument in (path, *([f"{path}@10"] * resume))]
        # DeepSpeed keeps its process groups for good, and each run has its own.
        alone = any("zero" in name for name in cases)
        for share in [[argument] for argument in arguments] if alone else [arguments]:
            self.run(num_ranks, *share)


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    """Rows of text and of images, so that one of two ranks has an image and the other none in most steps."""
    registry.load()
    home = tmp_path_factory.mktemp("strategy")
    for name, number in (("train", 24), ("val", 6)):
        lines = []
        for i in range(number):
            answer = f"it is {2 * i}" + " yes" * (i % 3)
            turns = [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": answer}]
            lines.append({"messages": turns})
            if i % 3 == 1:
                Image.new("RGB", (32, 32), (9 * i, 90, 200)).save(home / f"{name}{i}.png")
                turns[0]["content"] = "<image>what is this?"
                lines[-1]["images"] = [f"{name}{i}.png"]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Group(home, home)


@pytest.fixture(scope="session")
def one_process(group):
    """Folders of the runs to compare with, by tuner."""
    group.together(1, {f"one_{name}": overrides for name, overrides in TUNERS.items()}, resume=False)
    return {name: group.done[f"one_{name}"] for name in TUNERS}


@pytest.fixture(scope="session")
def on_two(group, one_process):
    """Runs every tuner under a strategy on two ranks, each twice from the middle; returns their folders by tuner."""
    known: dict[str, dict[str, RunFolder]] = {}

    def run(strategy: str, *overrides: str) -> dict[str, RunFolder]:
        if strategy not in known:
            choice = (f"memory/strategy={strategy}", *overrides)
            cases = {f"{strategy}_{name}": (*choice, *own) for name, own in TUNERS.items()}
            group.together(2, cases, resume=True)
            known[strategy] = {name: group.done[f"{strategy}_{name}"] for name in TUNERS}
        return known[strategy]

    return run


def slug(choice):
    """A folder's name of what was chosen on a command line."""
    return re.sub("[ .=]", "_", choice)


def exported(target):
    """Returns all weights of a run's result, by file and name."""
    return {
        (file.name, key): value for file in target.glob("**/*.safetensors") for key, value in load_file(file).items()
    }


def assert_same_weights(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        # A bias of keys shifts all scores of a query alike, but for the rotation: what little gradient it has is
        # rounding for the most part, which Adam scales up to whole steps.
        tolerance = 1e-3 if key.endswith("qkv.bias") else 2e-4
        torch.testing.assert_close(after[key], value, atol=tolerance, rtol=1e-3, msg=key)


@pytest.fixture(scope="session")
def check(one_process, on_two, figures):
    """Holds the run of a tuner under a strategy to that of one process: curves, export, checkpoints, resume."""

    def compare(strategy: str, tuner: str, *overrides: str) -> RunFolder:
        one, two = one_process[tuner], on_two(strategy, *overrides)[tuner]
        whole = two.path / "whole.jsonl"
        for key, tolerance in (("train/loss", 1e-4), ("train/grad_norm", 1e-3), ("val/loss", 1e-4)):
            expected = figures(one.metrics, key)
            assert figures(whole, key) == pytest.approx(expected, abs=tolerance), key
            assert len(expected) >= (20 if key.startswith("train") else 2)
        assert figures(two.metrics, "train/loss") == figures(whole, "train/loss"), "the resumed run is another"
        name = "model/model.safetensors" if tuner == "full" else "adapter/adapter_model.safetensors"
        assert_same_weights(load_file(one.path / name), load_file(two.path / name))
        summary = two.read_summary()
        size = sum(path.stat().st_size for path in (two.checkpoints / "step_20").rglob("*") if path.is_file())
        # A sharded checkpoint has about 1.4 kB beside each tensor of each process, DeepSpeed the weights once more;
        # frozen weights take 4 MB.
        sharded = (two.checkpoints / "step_20" / "trainer.ckpt").is_dir()
        each, room = (16, 1_250_000) if sharded else (12, 250_000)
        assert size < 1.2 * each * summary["trainable_parameters"] + room, "frozen weights are in the checkpoint"
        assert summary["tokens"] == one.read_summary()["tokens"]
        assert json.loads((two.path / "strategy.json").read_text())["processes"] == 2
        return two

    return compare


def read_figures(path: Path, key: str) -> dict[int, float]:
    """The figure of each step, by step; the untrained model is step 0."""
    return {row["step"]: row[key] for row in read(path) if key in row}


@pytest.fixture(scope="session")
def figures():
    """Returns the figure of each step of a metrics.jsonl, by step."""
    return read_figures


@pytest.fixture
def two_ranks():
    return Ranks(world_size=2)
