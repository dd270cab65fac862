"""Whole runs in this process: what a run folder holds, and that a resumed run is the run it would have been."""

import json

import pytest
import torch

from harness.logging.metrics import read
from harness.trainer.checkpoint import FILE


PACKED = ("data.packing=true", "data.packing_length=64")


def losses(folder):
    return {row["step"]: row["train/loss"] for row in read(folder.metrics) if row["step"] > 0}


def weights(folder, step):
    return torch.load(folder.checkpoints / f"step_{step}" / FILE, weights_only=True)["state_dict"]


def test_a_run_keeps_the_contracts(run, capsys):
    folder, code = run("a", "trainer.max_epochs=1", "optim.lr=1e-3")
    assert code == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {folder.path}"
    names = {path.name for path in folder.path.iterdir()}
    files = "config.yaml environment.json status.json run.lock metrics.jsonl summary.json train.log predictions.jsonl"
    assert set(files.split()) | {"checkpoints", "adapter", "curves.png"} <= names
    summary = json.loads(folder.summary.read_text())
    assert (summary["status"], summary["steps"], summary["seed"], summary["error"]) == ("completed", 4, 42, None)
    assert summary["tokens_per_s"] > 0 and summary["trainable_parameters"] < summary["total_parameters"]
    assert set(summary["val"]) == set(summary["baseline"]) == {"val/loss", "val/exact_match"}
    assert folder.read_status()["state"] == "completed" and folder.read_status()["last_step"] == 4
    rows = read(folder.metrics)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    keys = {"train/loss", "train/grad_norm", "train/lr/llm", "val/loss", "perf/tokens_per_s", "perf/step_time_s"}
    assert keys <= rows[-1].keys()
    items = [json.loads(line) for line in folder.predictions.read_text().splitlines()]
    assert len(items) == 2 * 4 and {"step", "origin", "reference", "prediction", "exact_match"} <= items[0].keys()


@pytest.mark.parametrize(
    "choice",
    [
        ["tuner=lora"],
        ["tuner=dora", "data.workers=2"],
        ["tuner=full", "freeze=none"],
        ["trainer.accumulate=2", *PACKED],
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_run_it_would_have_been(run, choice):
    """Dropout is on; the break is in the middle of the second epoch."""
    common = [
        *choice,
        "optim.lr=1e-3",
        "trainer.save_every_steps=3",
        "trainer.val_every_steps=6",
        "trainer.batch_size=4",
    ]
    common += ["trainer.max_steps=9", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9"]
    folder, _ = run("a", *common)
    expected, expected_weights = losses(folder), weights(folder, 9)
    # As a kill after step 3 would have left it: later rows are in metrics.jsonl, later checkpoints are not.
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_3")
    _, code = run("a", *common, "trainer.resume=auto")
    assert code == 0 and folder.read_status()["attempt"] == 2
    assert losses(folder) == expected
    for name, value in weights(folder, 9).items():
        assert torch.equal(value, expected_weights[name]), name


def test_a_used_folder_is_not_overwritten(run, capsys):
    run("a", "trainer.max_steps=1")
    _, code = run("a", "trainer.max_steps=1")
    assert code == 2
    assert "already holds a run: go on with trainer.resume=" in capsys.readouterr().err


def test_a_diverged_run_says_so(run):
    folder, code = run("a", "tuner=full", "optim.lr=1e30", "trainer.max_steps=6", "trainer.log_every_steps=1")
    summary = json.loads(folder.summary.read_text())
    assert (code, summary["status"]) == (1, "diverged")
    assert "DivergedError" in summary["error"] and folder.read_status()["state"] == "diverged"


def test_frozen_weights_do_not_change_in_a_run(run, make_tuned):
    from transformers import Qwen3VLForConditionalGeneration

    from harness.model.component import Component, component_of

    folder, _ = run("a", "tuner=full", "freeze=llm_vit", "optim.lr=1e-3", "trainer.max_steps=2")
    before = dict(make_tuned("tuner=full").base.named_parameters())
    after = Qwen3VLForConditionalGeneration.from_pretrained(folder.path / "model")
    for name, parameter in after.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (component_of(name) is Component.aligner), name


def test_best_checkpoint_is_exported_when_asked(run):
    common = ["tuner=full", "optim.lr=1e-3", "trainer.max_steps=4", "trainer.val_every_steps=1"]
    folder, _ = run("a", *common, "trainer.load_best=true", "trainer.keep_checkpoints=9", "trainer.monitor=val/loss")
    best = json.loads(folder.summary.read_text())["best"]
    assert best["value"] == min(row["val/loss"] for row in read(folder.metrics) if row["step"] > 0)
    assert (folder.checkpoints / "best").resolve().name == f"step_{best['step']}"
