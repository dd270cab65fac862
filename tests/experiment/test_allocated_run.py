"""Whole runs with adapters that keep more than weights: a resumed run is the run it would have been."""

import json

import pytest
import torch

from harness.data import digits
from harness.logging.metrics import read
from harness.trainer.checkpoint import FILE

pytestmark = pytest.mark.slow

ADALORA = ["tuner=adalora", "tuner.target_r=2", "tuner.init_r=4", "tuner.tinit=1", "tuner.tfinal=1"]


@pytest.fixture(autouse=True)
def few_validation_rows(monkeypatch):
    monkeypatch.setattr(digits, "NUM_VAL", 10)


def checkpoint(folder, step):
    return torch.load(folder.checkpoints / f"step_{step}" / FILE, weights_only=True)


@pytest.mark.parametrize(
    "choice",
    # SHiRA draws its mask anew, COFT changes weights in the forward pass, PVeRA draws numbers there.
    [
        ADALORA,
        ["tuner=peft", "tuner.method=shira"],
        ["tuner=oft", "tuner.coft=true"],
        ["tuner=peft", "tuner.method=pvera"],
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_run_it_would_have_been(run, choice):
    common = [*choice, "optim.lr=1e-3", "trainer.batch_size=2", "data.generation.enabled=false"]
    common += ["trainer.val_at_start=false", "trainer.max_steps=5", "trainer.save_every_steps=2"]
    common += ["trainer.keep_checkpoints=9", "trainer.accumulate=2"]
    folder, code = run("a", *common)
    assert code == 0
    expected, end = read(folder.metrics), checkpoint(folder, 5)
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_2")
    _, code = run("a", *common, "trainer.resume=auto")
    assert code == 0
    assert [row.get("train/loss") for row in read(folder.metrics)] == [row.get("train/loss") for row in expected]
    resumed = checkpoint(folder, 5)
    for name, value in end["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    if choice is ADALORA:
        assert resumed["tuner"]["rank_pattern"] == end["tuner"]["rank_pattern"]
        pattern = json.loads((folder.path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
        assert sum(sum(mask) for mask in pattern.values()) == 2 * 4 * 7


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adalora", "vera", "boft", "oft", "fourierft", "bone"])
def test_a_run_on_a_gpu_trains_and_goes_on(run, name):
    """Averages of AdaLoRA, VeRA's matrices, BOFT's permutations and FourierFT's places are on the device."""
    common = [f"tuner={name}", "model.dtype=bfloat16", "trainer.accelerator=gpu", "freeze=none", "optim.lr=3e-3"]
    common += ["trainer.max_steps=6", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9"]
    folder, code = run("a", *common)
    expected = [row["train/loss"] for row in read(folder.metrics) if row["step"]]
    assert code == 0
    early, late = checkpoint(folder, 3)["state_dict"], checkpoint(folder, 6)["state_dict"]
    assert all(torch.isfinite(value).all() for value in late.values())
    # Losses of six batches of two digits tell nothing: one method starts slower than another.
    assert any(not torch.equal(late[key], early[key]) for key in late)
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_3")
    _, code = run("a", *common, "trainer.resume=auto")
    got = [row["train/loss"] for row in read(folder.metrics) if row["step"]]
    assert code == 0
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=5e-3, rtol=0)
