"""Runs on a GPU: precisions, adapters in float32 over a bfloat16 base, and resume."""

import json

import pytest
import torch

from harness.logging.metrics import read

pytestmark = pytest.mark.gpu

LEARN = (
    "data.train_rows=256",
    "trainer.batch_size=32",
    "trainer.max_steps=40",
    "optim.lr=5e-3",
    "trainer.accelerator=gpu",
)


@pytest.mark.parametrize(
    "choice",
    [
        ["model.dtype=bfloat16"],
        ["memory.precision=bf16", "tuner=full", "optim.lr=1e-3"],
        ["model.dtype=bfloat16", "tuner=full", "freeze=none", "optim.lr=1e-3"],
        ["model.dtype=float16"],
        ["memory.precision=fp16", "tuner=full", "optim.lr=1e-3"],
        ["memory.precision=fp32"],
        ["model.dtype=bfloat16", "memory.checkpointing=true", "freeze=none", "tuner=dora"],
        ["model.dtype=bfloat16", "memory.checkpointing=true", "freeze.frozen=[]", "freeze.full=[aligner]"],
        ["model.dtype=bfloat16", "memory.checkpointing=selective", "freeze=none"],
        ["model.dtype=bfloat16", "memory.checkpointing=full", "memory.offload_activations=true"],
        ["model.dtype=bfloat16", "memory=fp8_base"],
        ["model.dtype=bfloat16", "memory=fp8_base", "memory.checkpointing=selective", "memory.keep_transpose=false"],
        ["model.dtype=bfloat16", "memory=auto", "memory.budget_gib=4"],
        ["model.dtype=bfloat16", "tuner.init=loftq", "tuner.loftq.iterations=5"],
    ],
    ids=" ".join,
)
def test_learns_in_every_precision(run, choice):
    folder, code = run("a", *LEARN, *choice)
    assert code == 0
    summary = json.loads(folder.summary.read_text())
    assert summary["val"]["val/loss"] < 0.7 * summary["baseline"]["val/loss"]
    assert summary["peak_allocated_gib"] > 0


@pytest.mark.parametrize(
    "choice",
    [
        ["model.dtype=bfloat16"],
        ["model.dtype=float16", "tuner=dora"],
        *(["model.dtype=bfloat16", f"tuner.init={init}"] for init in ("pissa", "eva", "corda", "lora_ga")),
    ],
    ids=" ".join,
)
def test_a_resumed_run_has_the_same_losses(run, choice):
    common = [*LEARN[:-1], *choice, "trainer.max_steps=9", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9"]
    folder, _ = run("a", *common)
    expected = [row["train/loss"] for row in read(folder.metrics) if row["step"]]
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_3")
    run("a", *common, "trainer.resume=auto")
    got = [row["train/loss"] for row in read(folder.metrics) if row["step"]]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=5e-3, rtol=0)
