"""Tuners that add to the model and export all of it: a resumed run is the run it would have been."""

import shutil

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from harness.trainer.checkpoint import FILE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "choice",
    [["tuner=llamapro", "tuner.num_new_blocks=2"], ["tuner=longlora", "data.packing=true", "data.packing_length=64"]],
    ids=" ".join,
)
def test_a_resumed_run_is_the_run_it_would_have_been(run, choice):
    common = [*choice, "optim.lr=1e-3", "trainer.batch_size=4", "trainer.max_steps=4", "trainer.val_every_steps=4"]
    common += ["trainer.save_every_steps=2", "trainer.keep_checkpoints=9"]
    folder, code = run("a", *common)
    assert code == 0

    def weights():
        state = torch.load(folder.checkpoints / "step_4" / FILE, weights_only=True)["state_dict"]
        exported = Qwen3VLForConditionalGeneration.from_pretrained(folder.path / "model").state_dict()
        return state | exported

    expected = weights()
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_2")
    shutil.rmtree(folder.checkpoints / "step_4")
    _, code = run("a", *common, "trainer.resume=auto")
    assert code == 0 and folder.read_status()["attempt"] == 2
    resumed = weights()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
