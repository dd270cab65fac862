import subprocess
import sys

import pytest
import torch

from harness.errors import UserError
from harness.model.forward import loss_sum, supervised_logits
from harness.optim.depth import layer_of
from harness.optim.group import parameter_groups
from harness.optim.lisa import LayerState, LisaConfig, build

LAYERS = 4


@pytest.fixture
def make_run(make_tuned):
    def make(freeze="none", **settings):
        tuned = make_tuned("tuner=full", f"freeze={freeze}")
        tuned.model.train()
        config = LisaConfig(**{"activated_layers": 1, "step_interval": 5} | settings)
        return tuned, build(config, parameter_groups(tuned.model, config, 1e-3))

    return make


def step(run, batch):
    tuned, optimizer = run
    loss = loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def weights(run):
    return {name: p.detach().clone() for name, p in run[0].model.named_parameters()}


def layers_in(names):
    """The decoder layers that names are in."""
    found = (layer_of(name) for name in names)
    return {layer[1] for layer in found if layer is not None and layer[0].value == "llm"}


def test_layers_that_change_are_those_that_it_activates_and_only_of_the_llm(make_run, make_batch):
    """40 steps of interval 5. What is no decoder layer trains in each step; decay does not touch who waits."""
    run, batch = make_run(weight_decay=0.5), make_batch(0)
    optimizer, outside = run[1], [n for n, _ in run[0].model.named_parameters() if not layers_in([n])]
    activated, changed_ever = [], set()
    for _ in range(8):
        active, before = optimizer.active, weights(run)
        for _ in range(5):
            assert optimizer.active == active
            step(run, batch)
        changed = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
        assert layers_in(changed) == set(active)
        assert changed >= set(outside)
        activated.append(active)
        changed_ever |= layers_in(changed)
    assert changed_ever == {number for active in activated for number in active}
    assert len(changed_ever) > 1 and changed_ever <= set(range(LAYERS))


def test_no_gradient_is_computed_for_layers_that_wait(make_run, make_batch):
    run = make_run(activated_layers=2)
    tuned, optimizer = run
    batch = make_batch(0)
    (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised).backward()
    got = {name for name, p in tuned.model.named_parameters() if p.grad is not None}
    assert layers_in(got) == set(optimizer.active)
    assert all(name in got for name, _ in tuned.model.named_parameters() if not layers_in([name]))


def test_the_optimiser_knows_every_layer(make_run):
    tuned, optimizer = make_run()
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in tuned.model.parameters()}
    assert sorted(optimizer.layers) == list(range(LAYERS))


def test_the_choice_is_uniform_and_follows_from_seed_and_interval_alone(make_run):
    _, optimizer = make_run(activated_layers=2, seed=7)
    draws = [optimizer.chosen(period * 5) for period in range(2000)]
    assert draws == [optimizer.chosen(period * 5 + 4) for period in range(2000)]
    assert all(len(set(draw)) == 2 for draw in draws)
    for number in range(LAYERS):
        # Binomial with p = 2 / 4: five standard deviations are 0.056.
        assert sum(number in draw for draw in draws) / 2000 == pytest.approx(0.5, abs=0.056)
    _, other = make_run(activated_layers=2, seed=8)
    assert [other.chosen(5 * n) for n in range(20)] != draws[:20]


@pytest.mark.parametrize("layer_state", list(LayerState))
def test_a_resume_in_the_middle_of_an_interval_is_the_unbroken_run(make_run, make_batch, tmp_path, layer_state):
    settings = {"step_interval": 3, "layer_state": layer_state, "activated_layers": 2}
    whole, resumed, batch = make_run(**settings), make_run(**settings), make_batch(0)
    for _ in range(7):
        step(whole, batch)
    torch.save({"model": whole[0].model.state_dict(), "optimizer": whole[1].state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed[0].model.load_state_dict(state["model"])
    resumed[1].load_state_dict(state["optimizer"])
    assert resumed[1].active == whole[1].active != make_run(**settings)[1].active
    for _ in range(7):
        for run in (whole, resumed):
            step(run, batch)
        assert resumed[1].active == whole[1].active
    expected = weights(whole)
    assert [name for name, value in weights(resumed).items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("layer_state", list(LayerState))
def test_state_of_a_layer_whose_turn_is_over_is_dropped_or_kept(make_run, make_batch, layer_state):
    run = make_run(step_interval=1, layer_state=layer_state)
    seen = set()
    for _ in range(8):
        seen |= set(run[1].active)
        step(run, make_batch(0))
    names = {id(p): name for name, p in run[0].model.named_parameters()}
    held = layers_in(names[id(p)] for p in run[1].state)
    # The layer of the next step has state only where it was active in the last one too.
    assert len(seen) > 1 and (held == seen if layer_state is LayerState.keep else held <= set(run[1].active))


def test_a_frozen_vision_side_stays_frozen_and_layers_that_policies_freeze_take_no_turns(make_tuned):
    choice = ["tuner=full", "freeze=prefix", "freeze.prefixes=[model.language_model.layers.0]"]
    tuned = make_tuned(*choice)
    optimizer = build(LisaConfig(), parameter_groups(tuned.model, LisaConfig(), 1e-3))
    assert sorted(optimizer.layers) == [1, 2, 3]
    frozen = [p for n, p in tuned.model.named_parameters() if layers_in([n]) == {0} or "visual" in n]
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize(
    ("freeze", "count", "message"),
    [
        ("none", 4, r"optim\.activated_layers=4: 4 layers of the LLM train in all; give fewer, or use optim=adamw"),
        ("llm", 1, r"optim\.activated_layers=1: no layer of the LLM trains, or use optim=adamw"),
    ],
)
def test_more_layers_than_take_turns_are_refused(make_run, freeze, count, message):
    with pytest.raises(UserError, match=message):
        make_run(freeze, activated_layers=count)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activated_layers": 0}, r"optim\.activated_layers=0: must be 1 or more"),
        ({"step_interval": 0}, r"optim\.step_interval=0: must be 1 or more"),
        ({"seed": -1}, r"optim\.seed=-1: must be 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LisaConfig(**settings)


def test_with_an_adapter_it_ends_with_exit_code_2():
    result = subprocess.run(
        [sys.executable, "-m", "harness", "optim=lisa", "tuner=lora"], capture_output=True, text=True
    )
    assert result.returncode == 2
    expected = "error: optim=lisa: trains the model's own weights, and tuner=lora is an adapter; set tuner=full"
    assert result.stderr.splitlines() == [expected]


def test_its_seed_is_that_of_the_run(make_config):
    assert make_config("optim=lisa", "tuner=full", "seed=7").optim.seed == 7
