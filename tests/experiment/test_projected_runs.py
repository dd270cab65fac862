"""Whole runs with projected gradients: they train, resume exactly, and update within the backward pass exactly."""

import pytest
import torch

from harness.data import digits
from harness.logging.metrics import read
from harness.trainer.checkpoint import FILE

pytestmark = pytest.mark.slow

SMALL = ("tuner=full", "optim.lr=1e-3", "data.generation.enabled=false", "trainer.val_at_start=false")
OPTIMISERS = ["galore", "q_galore", "apollo"]


@pytest.fixture(autouse=True)
def few_validation_rows(monkeypatch):
    monkeypatch.setattr(digits, "NUM_VAL", 10)


def rows(folder):
    return {row["step"]: (row["train/loss"], row["train/grad_norm"]) for row in read(folder.metrics) if row["step"]}


def checkpoint(folder, step):
    return torch.load(folder.checkpoints / f"step_{step}" / FILE, weights_only=True)


def settings(name):
    extra = ["optim.proj_quant=true", "optim.quantize_weights=true"] if name == "q_galore" else []
    # The break after step 2 lies within an interval of 3; step 4 projects anew.
    return [*SMALL, f"optim={name}", "optim.rank=8", "optim.update_proj_gap=3", "trainer.batch_size=2", *extra]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_resumed_run_is_the_run_it_would_have_been(run, name):
    common = [*settings(name), "freeze=none", "optim.schedule.warmup_steps=2", "trainer.max_steps=5"]
    common += ["trainer.accumulate=2", "trainer.save_every_steps=2", "trainer.keep_checkpoints=9"]
    folder, code = run("a", *common)
    assert code == 0
    expected, end = rows(folder), checkpoint(folder, 5)
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_2")
    _, code = run("a", *common, "trainer.resume=auto")
    assert code == 0 and rows(folder) == expected
    resumed = checkpoint(folder, 5)
    assert_same(resumed["state_dict"], end["state_dict"])
    assert_same(resumed["optimizer_states"], end["optimizer_states"])


def assert_same(left, right):
    """Equal values, types and dtypes, however deep."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        [assert_same(left[key], right[key]) for key in left]
    elif isinstance(left, list):
        [assert_same(*pair) for pair in zip(left, right, strict=True)]
    else:
        assert left == right


@pytest.mark.parametrize("name", OPTIMISERS)
def test_updates_within_the_backward_pass_give_the_same_run(run, name):
    """With recomputed activations, autocast and tied embeddings, the three ways to meet a weight twice in a step."""
    common = [*settings(name), "freeze=none", "memory.checkpointing=true", "memory.precision=bf16"]
    common += ["trainer.max_steps=3", "optim.max_grad_norm=null", "optim.with_embedding=true"]
    after, _ = run("after", *common)
    within, code = run("within", *common, "optim.per_parameter=true")
    assert code == 0
    expected, got = checkpoint(after, 3), checkpoint(within, 3)
    assert_same(got["state_dict"], expected["state_dict"])
    assert_same(got["optimizer_states"], expected["optimizer_states"])
    for step, (loss, norm) in rows(after).items():
        assert rows(within)[step] == (loss, pytest.approx(norm, rel=1e-5))


def test_a_component_whose_gradients_are_all_freed_has_had_some(run):
    choice = ["freeze=regex", "freeze.trainable_regex=.*language_model.*q_proj.weight", "optim.max_grad_norm=null"]
    _, code = run("a", *settings("galore"), *choice, "optim.per_parameter=true", "trainer.max_steps=1")
    assert code == 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    "choice",
    [["memory.precision=bf16"], ["model.dtype=bfloat16"], ["tuner.dtype=bfloat16", "model.dtype=bfloat16"]],
    ids=" ".join,
)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_it_learns_on_a_gpu_in_16_bits(run, name, choice):
    common = [f"optim={name}", "optim.rank=16", "tuner=full", "optim.lr=2e-3", "data.train_rows=256", *choice]
    folder, code = run("a", *common, "trainer.batch_size=32", "trainer.max_steps=40", "trainer.accelerator=gpu")
    losses = [loss for loss, _ in rows(folder).values()]
    assert code == 0 and sum(losses[-5:]) < 0.5 * sum(losses[:5])
