"""The same run twice, with deterministic kernels asked for."""

import pytest
import torch

from harness.logging.metrics import read
from harness.trainer.callback import BetweenSteps

FIGURES = ("train/loss", "train/grad_norm", "val/loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ["tuner=lora", "tuner.dropout=0.2", "trainer.neftune_alpha=5"],
        ["tuner=full", "freeze=none", "trainer.accumulate=2", "data.workers=2"],
        ["tuner=dora", "freeze=none", "data.packing=true", "data.packing_length=128", "memory.checkpointing=true"],
    ],
    ids=" ".join,
)
def test_two_runs_are_equal_bit_by_bit(run, monkeypatch, choice):
    real, modes = BetweenSteps.on_train_batch_end, []

    def note(*args):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return real(*args)

    monkeypatch.setattr(BetweenSteps, "on_train_batch_end", note)
    common = [
        *choice,
        "data.held_out=8",
        "trainer.deterministic=true",
        "trainer.max_steps=4",
        "trainer.save_every_steps=2",
    ]
    folders = [run(name, *common)[0] for name in ("a", "b")]
    assert modes and all(modes) and not torch.are_deterministic_algorithms_enabled()
    ours, theirs = ([[row.get(key) for key in FIGURES] for row in read(folder.metrics)] for folder in folders)
    assert len(ours) == 5 and ours == theirs
    one, other = (
        torch.load(folder.checkpoints / "last" / "trainer.ckpt", weights_only=True)["state_dict"] for folder in folders
    )
    assert one and one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    results = [sorted((folder.path).glob("*/*model*.safetensors")) for folder in folders]
    assert results[0] and [path.read_bytes() for path in results[0]] == [path.read_bytes() for path in results[1]]
