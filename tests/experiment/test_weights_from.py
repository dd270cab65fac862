"""A run that begins with the weights of another one."""

import pytest
import torch

from harness.errors import UserError
from harness.experiment import weights_from
from harness.logging.metrics import read
from harness.trainer.checkpoint import FILE

TWO = "trainer.max_steps=2"


def weights(folder, name="last"):
    return torch.load(folder.checkpoints / name / FILE, weights_only=True)["state_dict"]


def first_and_last(folder):
    rows = read(folder.metrics)
    return rows[0]["val/loss"], rows[-1]["val/loss"]


@pytest.mark.parametrize("tuner", [["tuner=lora"], ["tuner=lora", "tuner.init=pissa"], ["tuner=full"]])
def test_begins_where_the_other_run_ended_with_an_optimiser_of_its_own(run, tuner):
    before, _ = run("before", *tuner, TWO, "optim.lr=1e-2")
    folder, code = run("after", *tuner, TWO, "optim.lr=1e-3", f"trainer.weights_from={before.path}")
    assert code == 0
    assert first_and_last(folder)[0] == pytest.approx(first_and_last(before)[1], abs=1e-6)
    assert [row["step"] for row in read(folder.metrics)] == [0, 1, 2]
    step = torch.load(folder.checkpoints / "last" / FILE, weights_only=True)["optimizer_states"][0]["state"][0]["step"]
    assert step == 2


def test_a_resumed_run_goes_on_from_its_own_weights(run):
    before, _ = run("before", TWO)
    run("after", TWO, f"trainer.weights_from={before.path}")
    folder, code = run("after", "trainer.max_steps=4", f"trainer.weights_from={before.path}", "trainer.resume=auto")
    plain, _ = run("plain", "trainer.max_steps=4", f"trainer.weights_from={before.path / 'checkpoints' / 'step_2'}")
    assert code == 0
    for name, value in weights(folder).items():
        # The schedule was that of two steps at first, so the weights differ, but not by a start anew.
        assert torch.allclose(value, weights(plain)[name], atol=5e-3), name
    assert [row["step"] for row in read(folder.metrics)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["tuner.rank=4"], "set the tuner as in that run"),
        (["tuner=dora"], "set tuner and freeze as in that run"),
        (["freeze=vit"], "set tuner and freeze as in that run"),
    ],
)
def test_another_tuner_or_policy_is_refused(run, capsys, change, message):
    before, _ = run("before", "trainer.max_steps=1")
    _, code = run("after", *change, f"trainer.weights_from={before.path}")
    assert code == 2
    assert "trainer.weights_from" in (said := capsys.readouterr().err) and message in said


def test_what_holds_no_good_checkpoint_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.weights_from=.*: no checkpoint; give a run folder"):
        weights_from.find(str(tmp_path))
    before, _ = run("before", "trainer.max_steps=1")
    file = before.checkpoints / "step_1" / FILE
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged: trainer\.ckpt: content is not what was written"):
        weights_from.find(str(before.path))
