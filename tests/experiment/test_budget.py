"""The size of a tuner from its trainable parameters: the largest within the budget, as the built model counts."""

import json

import pytest

from harness import registry
from harness.errors import UserError
from harness.experiment.budget import solve

BUDGET = 52_224
SIZES = {
    "lora": ("rank", 8),
    "dora": ("rank", 7),
    "adalora": ("init_r", 7),
    "vera": ("rank", 1746),
    "boft": ("block_size", 8),
    "oft": ("block_size", 32),
    "fourierft": ("n_frequency", 1865),
    "bone": ("rank", 15),
    "adapter": ("length", 33),
    "reft": ("rank", 67),
}


def trained(tuned):
    return sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("dora", "boft") else pytest.mark.slow) for name in SIZES]
)
def test_the_size_is_the_largest_within_the_budget(make_config, make_tuned, name):
    more = ["tuner.target_r=4"] if name == "adalora" else []
    config, found = solve(make_config(f"tuner={name}", f"tuner.budget={BUDGET}", *more))
    key, size = SIZES[name]
    assert (found.key, found.size) == (f"tuner.{key}", size) and config.tuner.budget is None
    assert getattr(config.tuner, key) == size and found.budget == BUDGET
    given = [f"tuner={name}", *more]
    assert trained(make_tuned(*given, f"tuner.{key}={size}")) == found.trainable_parameters <= BUDGET


def test_every_tuner_of_a_size_is_here():
    sized = {name for name in registry.names("tuner") if getattr(registry.get("tuner", name).config, "size", None)}
    assert sized == {*SIZES, "longlora"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "given"),
    [
        (600_000, ["tuner=lora", "freeze.frozen=[vit]", "freeze.full=[aligner]"]),
        (600_000, ["tuner=boft", "freeze.frozen=[vit]", "freeze.full=[aligner]"]),
        (60_000, ["tuner=fourierft", "tuner.modules_to_save=[language_model.norm]"]),
        (60_000, ["tuner=lora", "tuner.init=gaussian", "tuner.rank_pattern={q_proj: 2}"]),
        (600_000, ["tuner=longlora"]),
    ],
    ids=str,
)
def test_what_trains_beside_counts(make_config, make_tuned, budget, given):
    config, found = solve(make_config(*given, f"tuner.budget={budget}"))
    assert trained(make_tuned(*given, f"{found.key}={found.size}")) == found.trainable_parameters <= budget
    if not config.tuner.size_divides_inputs:
        assert trained(make_tuned(*given, f"{found.key}={found.size + 1}")) > budget


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tuner=lora", "tuner.budget=100"], r"budget=100: the nearest possible is 6,528 \(tuner.rank=1\)"),
        (["tuner=reft", "tuner.budget=10000000"], r"the nearest possible is [\d,]+ \(tuner.rank=96\)"),
        (["tuner=oft", "tuner.budget=1000000"], r"the nearest possible is 49,600 \(tuner.block_size=32\)"),
        (["tuner=lora", "tuner.budget=0"], "tuner.budget=0: must be 1 or more"),
        (["tuner=lora", "tuner.budget=9999", "tuner.rank=4"], "tuner.rank=4: follows from tuner.budget=9999"),
        (["tuner=lora", "tuner.budget=9999", "tuner.init=orthogonal"], "needs an even rank: give tuner.rank"),
        (["tuner=peft", "tuner.budget=9999"], "tuner=peft has no size to be solved for"),
        (["tuner=full", "tuner.budget=9999"], "tuner.budget=9999: no such key"),
    ],
)
def test_a_budget_that_can_not_be_met_is_refused(make_config, given, message):
    with pytest.raises(UserError, match=message):
        solve(make_config(*given))


def test_a_run_says_what_its_budget_came_to(run):
    folder, code = run("a", "tuner=dora", f"tuner.budget={BUDGET}", "trainer.max_steps=1", "trainer.val_at_start=false")
    summary = json.loads(folder.summary.read_text())
    assert code == 0 and summary["trainable_parameters"] == 49_024
    expected = {"key": "tuner.rank", "size": 7, "budget": BUDGET, "trainable_parameters": 49_024}
    assert summary["tuner_size"] == expected
    assert "tuner.budget=52224: tuner.rank=7 trains 49,024 parameters" in (folder.path / "train.log").read_text()
    assert json.loads((folder.path / "adapter" / "adapter_config.json").read_text())["r"] == 7
