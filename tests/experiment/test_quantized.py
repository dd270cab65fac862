"""Whole runs on quantised bases: a resume is the same run, and on a GPU they learn, packed and compiled too."""

import json

import pytest

from harness.logging.metrics import read

BNB4 = ("memory/quant=bnb4", "tuner=dora")
LEARN = (
    "data.train_rows=256",
    "trainer.batch_size=32",
    "trainer.max_steps=40",
    "optim.lr=5e-3",
    "trainer.accelerator=gpu",
    "model.dtype=bfloat16",
)
PACKED = ("data.packing=true", "data.packing_length=256", "trainer.batch_size=4", "trainer.compile=true")


@pytest.mark.slow
def test_a_resumed_run_has_the_same_losses(run):
    pytest.importorskip("bitsandbytes", reason="extra quant")
    common = [*BNB4, "trainer.max_steps=4", "trainer.save_every_steps=2", "trainer.keep_checkpoints=9"]
    folder, code = run("a", *common)
    assert code == 0
    expected = [row["train/loss"] for row in read(folder.metrics) if row["step"]]
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_2")
    run("a", *common, "trainer.resume=auto")
    assert [row["train/loss"] for row in read(folder.metrics) if row["step"]] == expected
    summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    assert summary["total_parameters"] > 1_000_000


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("package", "choice"),
    [
        ("bitsandbytes", ["memory/quant=bnb4"]),
        ("bitsandbytes", ["memory/quant=bnb4", "tuner=dora", *PACKED]),
        ("bitsandbytes", ["memory/quant=bnb4", "memory=auto", "memory.budget_gib=4"]),
        ("bitsandbytes", ["memory/quant=bnb8", *PACKED]),
        ("hqq", ["memory/quant=hqq", "memory.quant.group_size=32"]),
        ("optimum.quanto", ["memory/quant=quanto", "memory.quant.weights=int4", "memory.quant.group_size=32"]),
        ("torchao", ["memory/quant=torchao", *PACKED]),
    ],
    ids=str,
)
def test_learns_on_a_gpu(run, package, choice):
    pytest.importorskip(package)
    folder, code = run("a", *LEARN, *choice)
    assert code == 0
    summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    assert summary["val"]["val/loss"] < 0.7 * summary["baseline"]["val/loss"]
    assert "fell back to Python" not in (folder.path / "train.log").read_text(encoding="utf-8")
