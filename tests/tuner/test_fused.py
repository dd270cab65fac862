"""Layers in groups compute what PEFT's modules do, one by one."""

import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear

from harness.model.forward import supervised_logits
from harness.tuner import fused


def grouped(tuned):
    """Returns the attentions and MLPs that run in groups."""
    return [module for module in tuned.model.modules() if hasattr(module, "forward_apart")]


def moved(tuned):
    """Moves the adapters away from their start, where B is zero and A has no gradient."""
    generator = torch.Generator().manual_seed(1)
    for parameter in tuned.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    tuned.model.train()
    return tuned


@pytest.mark.parametrize("mlps", [4, 0])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_groups_compute_what_single_layers_do(against_peft, name, mlps):
    targets = [] if mlps else ["tuner.target_modules=[q_proj,v_proj]", "tuner.rank_pattern={v_proj:3}"]
    (logits, grads), (expected, expected_grads), layers = against_peft(
        f"tuner={name}", "tuner.dropout=0", *targets, spread=0.05
    )
    assert len(layers) == 4 + mlps
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert len(grads) > 8 and all(grad.abs().max() > 0 for grad in grads.values())
    for key, grad in expected_grads.items():
        torch.testing.assert_close(grads[key], grad, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_group_in_one_is_the_group_one_by_one(make_tuned, monkeypatch, name, dropout, autocast):
    """Ranks and scales that differ, and a layer without an adapter; the other way is that of compiled steps."""
    tuned = moved(
        make_tuned(
            f"tuner={name}",
            f"tuner.dropout={dropout}",
            "tuner.target_modules=[q_proj,v_proj]",
            "tuner.rank_pattern={v_proj:3}",
            "tuner.alpha_pattern={v_proj:5}",
        )
    )
    attention = tuned.base.model.language_model.layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = torch.randn(2, 5, attention.k_proj.in_features, requires_grad=True)
    leaves = [x, *(p for p in attention.parameters() if p.requires_grad)]
    found = []
    for joins in (True, False):
        monkeypatch.setattr(fused, "is_frozen_matrix", lambda _, joins=joins: joins)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = fused.products(x, *layers)
        assert ("Joined" in str(results[1].grad_fn.next_functions) + str(results[1].grad_fn)) is joins
        total = sum((y.float() * torch.arange(y.numel()).view_as(y).cos()).sum() for y in results)
        found.append([*results, *torch.autograd.grad(total, leaves)])
    gap = 2e-2 if autocast else 1e-5
    for got, expected in zip(*found, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=gap * expected.abs().max().item(), rtol=gap)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_dropout_acts_on_the_low_rank_path_alone(make_tuned, make_batch, name):
    tuned, batch = make_tuned(f"tuner={name}", "tuner.dropout=0.5"), make_batch(0, 1)
    tuned.model.train()
    with torch.no_grad():
        start = [supervised_logits(tuned.base, batch) for _ in range(2)]
    torch.testing.assert_close(start[0], start[1], atol=0, rtol=0)
    moved(tuned)
    with torch.no_grad():
        later = [supervised_logits(tuned.base, batch) for _ in range(2)]
    assert (later[0] - later[1]).abs().max() > 1e-3


def test_q_k_and_v_share_one_mask(make_tuned):
    tuned = make_tuned("tuner=lora", "tuner.dropout=0.5", "tuner.init=false")
    attention = tuned.base.model.language_model.layers[0].self_attn.train()
    for layer in (attention.k_proj, attention.v_proj):
        layer.base_layer.weight.data = attention.v_proj.base_layer.weight.data.clone()
        for part in ("lora_A", "lora_B"):
            getattr(layer, part).default.weight.data = getattr(attention.v_proj, part).default.weight.data.clone()
    x = torch.randn(3, attention.k_proj.in_features)
    _, key, value = fused.products(x, attention.q_proj, attention.k_proj, attention.v_proj)
    torch.testing.assert_close(key, value)


def test_adapters_that_are_off_or_merged_are_left_out(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=lora", "tuner.dropout=0"), make_batch(0)
    tuned.model.train()
    with torch.no_grad():
        base = supervised_logits(tuned.base, batch)
        moved(tuned)
        changed = supervised_logits(tuned.base, batch)
        with tuned.model.disable_adapter():
            torch.testing.assert_close(supervised_logits(tuned.base, batch), base)
        tuned.model.merge_adapter()
        torch.testing.assert_close(supervised_logits(tuned.base, batch), changed, atol=1e-4, rtol=1e-4)
    assert (changed - base).abs().max() > 0.01


def test_fused_can_be_switched_off(make_tuned):
    assert grouped(make_tuned("tuner=lora")) and not grouped(make_tuned("tuner=lora", "tuner.fused=false"))


def test_what_trains_in_the_frozen_layers_place_is_left_alone(make_tuned):
    tuned = make_tuned("tuner=lora")
    layer = tuned.base.model.language_model.layers[0]
    mlp = layer.mlp
    assert isinstance(mlp.up_proj, LoraLinear) and fused._known(mlp.up_proj)
    mlp.up_proj.base_layer.weight.requires_grad_(True)
    assert not fused._known(mlp.up_proj)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_of_the_changed_weight_is_that_of_the_sum(make_tuned, dtype):
    tuned = moved(make_tuned("tuner=dora", f"model.dtype={dtype}"))
    layer = tuned.base.model.language_model.layers[1].mlp.down_proj
    changed = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    found = fused.changed_norm(layer, layer.scaling["default"])
    torch.testing.assert_close(found, changed.norm(dim=1), rtol=1e-5 if dtype == "float32" else 2e-3, atol=0)
