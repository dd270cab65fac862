"""Whole runs with each optimiser: a resumed run is the run it would have been, and the export is what was validated."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from harness import registry
from harness.experiment.folder import RunFolder
from harness.logging.metrics import read
from harness.trainer.checkpoint import FILE
from harness.trainer.evaluate import Evaluator

pytestmark = pytest.mark.slow

registry.load()
OPTIONS = {
    # The smallest matrices of the tiny model have 64 rows.
    **{name: ["optim.rank=8"] for name in ("galore", "q_galore", "apollo")},
    "lisa": ["optim.step_interval=3", "optim.activated_layers=1"],
    "muon": ["optim.ns_steps=1"],
    "sgd": ["optim.momentum=0.5"],
}
with_library = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
OPTIMIZERS = [
    pytest.param(name, marks=[with_library] if "8bit" in name else [])
    for name in registry.names("optim")
    if name != "paged_adamw_8bit"
]
STEPS = 6


@pytest.fixture
def run_text(run, tmp_path):
    """Runs full fine-tuning on eight rows of text: a fraction of a second."""
    for name, count in (("train", 8), ("val", 2)):
        turns = [("user", "how many?"), ("assistant", "a lot " * 3)]
        messages = [{"role": role, "content": content} for role, content in turns]
        lines = [json.dumps({"messages": messages, "id": number}) + "\n" for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def complete(*overrides):
        rows = [f"data.{split}={tmp_path / f'{split}.jsonl'}" for split in ("train", "val")]
        steps = [f"trainer.max_steps={STEPS}", "trainer.save_every_steps=2", "trainer.keep_checkpoints=9"]
        common = ["data=jsonl", "tuner=full", "trainer.batch_size=2", "optim.lr=1e-3", "trainer.val_every_steps=2"]
        return [*common, *rows, *steps, "trainer.val_at_start=false", "trainer.log_every_steps=1", *overrides]

    def start(name, *overrides):
        return run(name, *complete(*overrides))

    start.overrides = complete
    return start


def rows(folder):
    keys = ("step", "train/loss", "train/grad_norm", "train/lr/llm", "val/loss")
    return [{key: row[key] for key in keys if key in row} for row in read(folder.metrics)]


def checkpoint(folder, name):
    return torch.load(folder.checkpoints / name / FILE, weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_run_it_would_have_been(run_text, name):
    choice = [f"optim={name}", *OPTIONS.get(name, []), "trainer.accumulate=2"]
    folder, code = run_text("a", *choice)
    assert code == 0
    expected, last = rows(folder), checkpoint(folder, "last")
    # Where the rate warms up from zero, the second step sees the weights of the first.
    assert len({row["train/loss"] for row in expected}) >= STEPS - 1
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_4")
    _, code = run_text("a", *choice, "trainer.resume=auto")
    assert code == 0 and rows(folder) == expected
    resumed = checkpoint(folder, "last")
    assert all(torch.equal(value, last["state_dict"][key]) for key, value in resumed["state_dict"].items())
    assert same(resumed["optimizer_states"], last["optimizer_states"])


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def averaged(folder, name):
    """Works out the average from a checkpoint: it holds y = 0.1 z + 0.9 x, and z in the optimiser's state."""
    stored = checkpoint(folder, name)
    (optimizer,) = stored["optimizer_states"]
    assert all(group["train_mode"] for group in optimizer["param_groups"])
    names = [item for group in optimizer["param_groups"] for item in group["param_names"]]
    weights = {}
    for index, parameter in enumerate(names):
        y, z = stored["state_dict"][f"model.{parameter}"], optimizer["state"][index]["z"]
        weights[parameter] = (y - 0.1 * z) / 0.9
    return weights


def exported(folder):
    return load_file(folder.path / "model" / "model.safetensors")


def distance(left, right):
    names = left.keys() & right.keys()
    assert len(names) > 40
    return max((left[name] - right[name]).abs().max().item() for name in names)


def test_schedule_free_exports_the_average(run_text):
    folder, code = run_text("a", "optim=schedule_free")
    assert code == 0
    result, trained = exported(folder), checkpoint(folder, "last")["state_dict"]
    assert distance(result, averaged(folder, "last")) < 1e-6
    assert distance(result, {name.removeprefix("model."): value for name, value in trained.items()}) > 1e-4
    # The run may have been killed before its export.
    folder.summary.unlink()
    (folder.path / "model" / "model.safetensors").unlink()
    _, code = run_text("a", "optim=schedule_free", "trainer.resume=auto")
    assert code == 0 and distance(exported(folder), result) == 0


def test_schedule_free_exports_the_best_average(run_text, monkeypatch):
    """The validation loss is made to rise, so that the best weights are not the last ones."""
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(Evaluator, "_loss", lambda self, trainer, module: ({"val/loss": next(losses)}, {}))
    folder, code = run_text("a", "optim=schedule_free", "trainer.load_best=true")
    assert code == 0 and (folder.checkpoints / "best").resolve().name == "step_2"
    assert distance(exported(folder), averaged(folder, "best")) < 1e-6
    assert distance(exported(folder), averaged(folder, "last")) > 1e-4


def test_schedule_free_validates_the_average(run_text, monkeypatch):
    seen, original = [], Evaluator._loss

    def loss(self, trainer, module):
        seen.append({name: p.detach().clone() for name, p in module.model.named_parameters() if p.requires_grad})
        return original(self, trainer, module)

    monkeypatch.setattr(Evaluator, "_loss", loss)
    folder, _ = run_text("a", "optim=schedule_free")
    assert len(seen) == 3
    for step, weights in zip((2, 4, 6), seen, strict=True):
        assert distance(weights, averaged(folder, f"step_{step}")) < 1e-6


def test_schedule_free_exports_in_the_type_of_the_base(run_text):
    folder, code = run_text("a", "optim=schedule_free", "model.dtype=bfloat16")
    assert code == 0 and {value.dtype for value in exported(folder).values()} == {torch.bfloat16}


def test_a_rate_for_each_layer_is_logged_and_shown(run_text):
    folder, code = run_text("a", "optim.layer_decay=0.5", "optim.schedule.name=constant")
    assert code == 0
    logged = {key: value for key, value in read(folder.metrics)[-1].items() if key.startswith("train/lr/")}
    names = ["llm_embed", *(f"llm_layer_0{number}" for number in range(4)), "llm"]
    assert logged == {f"train/lr/{name}": pytest.approx(1e-3 / 2 ** (5 - i)) for i, name in enumerate(names)}
    log = (folder.path / "train.log").read_text()
    assert "3.1e-05 to 1.0e-03" in log


def test_lisa_on_two_processes_is_lisa_on_one(run_text, tmp_path):
    """Both draw the same layers, and gradients are averaged although most layers bring none."""
    choice = ["optim=lisa", "optim.activated_layers=1", "optim.step_interval=2", "data.shuffle=false"]
    one, code = run_text("one", *choice, "trainer.accumulate=2")
    assert code == 0
    command = [sys.executable, "-m", "harness", *run_text.overrides(*choice), "trainer.accumulate=2"]
    command += ["trainer.devices=2", "trainer.batch_size=1", "trainer.accelerator=cpu", "data.workers=0"]
    command += [f"hydra.run.dir={tmp_path / 'two'}"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    two = RunFolder(tmp_path / "two")
    curves = [[row["train/loss"] for row in read(folder.metrics)] for folder in (one, two)]
    assert len(curves[0]) == STEPS and curves[1] == pytest.approx(curves[0], abs=1e-5)
    before, after = (checkpoint(folder, "last")["state_dict"] for folder in (one, two))
    assert all(torch.allclose(after[name], value, atol=1e-5) for name, value in before.items())
