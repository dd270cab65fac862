"""First values: the spread that each rule promises, from the run's seed alone; and absent weights of a checkpoint."""

import logging
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.model.initialisation import draw, seeded
from harness.model.loading import load
from harness.model.qwen3_vl import InitStrategy

RANDOM = [rule for rule in InitStrategy if rule not in (InitStrategy.mean, InitStrategy.zero)]
SPREAD = {
    "zero": 0.0,
    "uniform": 0.02,
    "normal": 0.02,
    "xavier_uniform": math.sqrt(2 / (200 + 300)),
    "xavier_normal": math.sqrt(2 / (200 + 300)),
    "kaiming_uniform": math.sqrt(2 / 300),
    "kaiming_normal": math.sqrt(2 / 300),
    "orthogonal": math.sqrt(1 / 300),
}
"""Standard deviation of a matrix of 200 by 300."""


@pytest.mark.parametrize("name", list(SPREAD))
def test_a_rule_has_the_spread_of_its_paper(name):
    made = draw(InitStrategy[name], (200, 300), 0.02, seeded())
    assert made.std().item() == pytest.approx(SPREAD[name], rel=0.02)
    assert abs(made.mean().item()) <= SPREAD[name] * 0.02
    if name.endswith("uniform"):
        assert made.abs().max().item() == pytest.approx(SPREAD[name] * math.sqrt(3), rel=0.01)
    if name == "orthogonal":
        torch.testing.assert_close(made @ made.T, torch.eye(200), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RANDOM, ids=lambda rule: rule.name)
def test_the_seed_alone_decides(rule):
    first = draw(rule, (4, 6), 0.02, seeded())
    torch.rand(5)
    assert torch.equal(draw(rule, (4, 6), 0.02, seeded()), first)
    torch.manual_seed(1)
    assert not torch.equal(draw(rule, (4, 6), 0.02, seeded()), first)


def test_three_dimensions_are_a_stack_of_matrices():
    """Experts of a mixture; as a convolution's kernel each would be drawn far too small."""
    made = draw(InitStrategy.xavier_normal, (4, 200, 300), 0.02, seeded())
    assert made.std().item() == pytest.approx(SPREAD["xavier_normal"], rel=0.02)


@pytest.fixture
def damaged(tmp_path, make_config):
    """A copy of the tiny checkpoint without a matrix, a kernel and two vectors."""
    absent = [
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.language_model.norm.weight",
        "model.visual.merger.norm.bias",
        "model.visual.patch_embed.proj.weight",
    ]
    folder = tmp_path / "damaged"
    load(make_config().model).model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name not in absent}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return f"model.path={folder}", absent


@pytest.mark.parametrize("name", ["zero", "kaiming_normal", "orthogonal", "uniform"])
def test_absent_matrices_follow_the_rule_and_one_line_names_all(damaged, make_config, caplog, name):
    path, absent = damaged
    with caplog.at_level(logging.WARNING, logger="harness"):
        model = load(make_config(path, f"model.init_strategy={name}").model).model
    (line,) = [record.getMessage() for record in caplog.records if "init_strategy" in record.getMessage()]
    assert line == f"model.init_strategy={name}: absent from the checkpoint, initialised: {', '.join(absent)}"
    matrix, norm, bias, kernel = (model.get_parameter(item) for item in absent)
    spread = {"zero": 0.0, "kaiming_normal": math.sqrt(2 / 96), "orthogonal": math.sqrt(1 / 192), "uniform": 0.02}
    assert matrix.std().item() == pytest.approx(spread[name], rel=0.05)
    assert bool(kernel.any()) == (name != "zero")
    assert torch.equal(norm, torch.ones_like(norm)) and not bias.any()
    again = load(make_config(path, f"model.init_strategy={name}").model).model
    assert torch.equal(again.get_parameter(absent[0]), matrix)


def test_without_a_rule_and_with_the_mean_it_is_refused(damaged, make_config):
    path, absent = damaged
    with pytest.raises(UserError, match=rf"lacks 4 of the model's weights, {re.escape(absent[0])} among them"):
        load(make_config(path).model)
    tokens = ['model.new_special_tokens=["<a>"]', "model.train_new_tokens=true"]
    with pytest.raises(UserError, match=rf"mean: is for new tokens alone, and the checkpoint lacks {absent[0]}"):
        load(make_config(path, "model.init_strategy=mean", *tokens).model)


def test_a_rule_without_anything_to_fill_is_refused(make_config):
    with pytest.raises(UserError, match=r"model\.init_strategy=normal: has no effect: the checkpoint has all weights"):
        load(make_config("model.init_strategy=normal").model)
    with pytest.raises(UserError, match=r"model\.init_strategy=mean: is for new tokens alone"):
        make_config("model.init_strategy=mean")
