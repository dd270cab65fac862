"""Whole runs of the adapters that PEFT does not know: resume, validation and export."""

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from harness.logging.metrics import read
from harness.model.checkpoint_path import resolve
from harness.tuner.own_format import attach

pytestmark = pytest.mark.slow

PACKED = ("data.packing=true", "data.max_length=128", "memory.checkpointing=true")


def weights(folder, step):
    return torch.load(folder.checkpoints / f"step_{step}" / "trainer.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "choice",
    [
        ["tuner=adapter", "freeze=none"],
        ["tuner=reft", "tuner.dropout=0.2", "tuner.prefix=2", "tuner.suffix=2", *PACKED],
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_run_it_would_have_been(run, choice):
    common = [*choice, "trainer.batch_size=4", "trainer.max_steps=4", "trainer.save_every_steps=2"]
    folder, code = run("a", *common, "optim.lr=1e-3")
    assert code == 0
    expected, expected_weights = [row.get("train/loss") for row in read(folder.metrics)], weights(folder, 4)
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_2")
    _, code = run("a", *common, "optim.lr=1e-3", "trainer.resume=auto")
    assert code == 0 and [row.get("train/loss") for row in read(folder.metrics)] == expected
    for name, value in weights(folder, 4).items():
        assert torch.equal(value, expected_weights[name]), name
    plain = Qwen3VLForConditionalGeneration.from_pretrained(resolve("harness:tiny"))
    attach(plain, folder.path / "adapter")
    for name, value in expected_weights.items():
        assert torch.equal(plain.get_parameter(name.removeprefix("model.")), value), name
