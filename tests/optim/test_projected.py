"""Which matrices are projected, and what the frame around GaLore, Q-GaLore and APOLLO keeps."""

import io
import math

import pytest
import torch

from harness.errors import UserError
from harness.optim.config import OptimConfig
from harness.optim.galore import GaloreConfig
from harness.optim.galore import build as build_galore
from harness.optim.group import parameter_groups
from harness.optim.projected import ProjectedConfig
from harness.optim.projected_target import choose_targets


@pytest.fixture
def groups(make_tuned):
    def make(freeze="none"):
        model = make_tuned("tuner=full", f"freeze={freeze}").model
        return parameter_groups(model, OptimConfig(), 1e-3)

    return make


def test_attention_and_mlp_of_all_that_trains_are_the_targets(groups):
    names = set(choose_targets(groups(), ProjectedConfig(rank=64)).values())
    # Seven matrices in each of four layers, four in each of four blocks; no merger, embedding or norm.
    assert len(names) == 7 * 4 + 4 * 4
    assert all("attn" in name or "mlp" in name for name in names)
    names = choose_targets(groups("vit_aligner"), ProjectedConfig(rank=64)).values()
    assert len(names) == 28 and not any("visual" in name for name in names)


def test_targets_are_parts_of_names_and_embeddings_come_by_a_switch(groups):
    names = choose_targets(groups(), ProjectedConfig(rank=8, target_modules=["q_proj", "merger"])).values()
    assert len(names) == 4 + 2 * 4
    config = ProjectedConfig(rank=8, target_modules=["q_proj"], with_embedding=True)
    assert "model.language_model.embed_tokens.weight" in choose_targets(groups(), config).values()


def test_experts_stacked_in_one_parameter_are_targets():
    experts = torch.nn.Parameter(torch.randn(3, 8, 6))
    group = {"params": [("model.language_model.layers.0.mlp.experts.down_proj", experts)], "lr": 1e-3}
    optimizer = build_galore(GaloreConfig(rank=2), [{**group, "weight_decay": 0.0}])
    experts.square().sum().backward()
    optimizer.step()
    assert optimizer.state[experts]["right"].shape == (3, 6, 2)
    assert optimizer.state[experts]["exp_avg"].shape == (3, 8, 2)


@pytest.mark.parametrize(
    ("freeze", "settings", "message"),
    [
        ("none", {"rank": 65}, r"rank=65: model\.language_model\S+k_proj\.weight is 64 x 96; 64 fits all targets"),
        ("none", {"target_modules": ["qq_proj"]}, r"target_modules=qq_proj: matches no matrix.* known: .*q_proj"),
        ("llm_vit", {"rank": 8}, r"target_modules=null: no attention or MLP matrix trains"),
        ("llm", {"rank": 8, "with_embedding": True}, r"with_embedding=True: neither the embedding nor the head trains"),
    ],
)
def test_what_can_not_be_projected_is_refused(groups, freeze, settings, message):
    with pytest.raises(UserError, match=message):
        choose_targets(groups(freeze), ProjectedConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"optim\.rank=0: must be 1 or more"),
        ({"update_proj_gap": 0}, r"optim\.update_proj_gap=0: must be 1 or more"),
        ({"scale": math.inf}, r"optim\.scale=inf: must be above 0"),
        ({"target_modules": []}, r"optim\.target_modules=\[\]: name modules"),
        ({"per_parameter": True}, r"optim\.max_grad_norm=1\.0: .*set optim\.max_grad_norm=null"),
        ({"beta2": 1.0}, r"optim\.beta2=1\.0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ProjectedConfig(**settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner=lora"], r"optim=galore: trains the model's own weights"),
        (["tuner=full", "optim.per_parameter=true", "trainer.accumulate=2"], r"trainer\.accumulate=2: optim\.per_para"),
        (["tuner=full", "optim.per_parameter=true", "trainer.devices=2"], r"trainer\.devices=2: optim\.per_parameter"),
    ],
)
def test_what_does_not_go_with_other_groups_is_refused(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("optim=galore", "optim.max_grad_norm=null", *overrides)


def two_weights():
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(6, 8, dtype=torch.bfloat16)), torch.nn.Parameter(torch.randn(8))]
    names = ["model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.norm.weight"]
    return weights, [
        {"params": [(name, weight)], "lr": 1e-2, "weight_decay": 0.1, "name": name, "component": "llm"}
        for name, weight in zip(names, weights, strict=True)
    ]


def step(optimizer, weights, seed):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    ((x @ weights[0]).tanh() * weights[1]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_state_that_is_finer_than_its_weight_survives_a_checkpoint():
    """torch casts a loaded state to the weight's bfloat16."""
    runs = []
    for broken in (False, True):
        weights, groups = two_weights()
        optimizer = build_galore(GaloreConfig(rank=2, update_proj_gap=3), groups)
        for seed in range(5):
            if broken and seed == 2:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                optimizer = build_galore(GaloreConfig(rank=2, update_proj_gap=3), two_groups(weights, groups))
                optimizer.load_state_dict(torch.load(buffer, weights_only=True))
            step(optimizer, weights, seed)
        assert optimizer.state[weights[0]]["exp_avg"].dtype == torch.float32
        runs.append(weights)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def two_groups(weights, groups):
    return [{**group, "params": [(group["name"], weight)]} for group, weight in zip(groups, weights, strict=True)]


def test_rates_of_a_loaded_state_hold_within_the_backward_pass():
    weights, groups = two_weights()
    optimizer = build_galore(GaloreConfig(rank=2, per_parameter=True, max_grad_norm=None), groups)
    step(optimizer, weights, 0)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [weight.detach().clone() for weight in weights]
    step(optimizer, weights, 1)
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))


def test_a_gradient_freed_within_the_backward_pass_leaves_its_norm():
    weights, groups = two_weights()
    optimizer = build_galore(GaloreConfig(rank=2, per_parameter=True, max_grad_norm=None), groups)
    (weights[0].sum() * 2 + weights[1].sum()).backward()
    assert weights[0].grad is None and weights[1].grad is not None
    assert {name: norm.item() for name, norm in optimizer.freed.items()} == {
        weights[0]: pytest.approx(2 * math.sqrt(48), rel=1e-3)
    }
    optimizer.step()
    assert not optimizer.freed
