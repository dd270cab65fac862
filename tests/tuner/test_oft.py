import pytest
import torch

from harness.errors import UserError
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.oft import OftConfig


def layers(model):
    return [module for module in model.modules() if hasattr(module, "oft_R")]


@pytest.mark.parametrize("shared", [False, True])
def test_trainable_count_is_that_of_the_paper(make_tuned, shared):
    """b (b - 1) / 2 for each block, inputs / b blocks or one (arXiv 2306.07280, section 4)."""
    model = make_tuned("tuner=oft", "tuner.block_size=16", f"tuner.block_share={shared}", "freeze=none").model
    blocks = sum(1 if shared else layer.in_features // 16 for layer in layers(model))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == blocks * 16 * 15 // 2


@pytest.mark.parametrize(("terms", "error"), [(0, 1e-5), (3, 0.1), (5, 1e-3), (8, 1e-5)])
def test_inputs_are_rotated_the_more_exactly_the_more_terms(make_tuned, terms, error):
    """W (R x) with R^T R = I: angles and lengths stay, hyperspherical energy with them (section 3)."""
    layer = layers(make_tuned("tuner=oft", f"tuner.neumann_terms={terms}").model)[0]
    torch.nn.init.normal_(layer.oft_R["default"].weight, std=0.015)
    rotation = layer.oft_R["default"](torch.eye(layer.in_features)).detach()
    off = (rotation @ rotation.T - torch.eye(layer.in_features)).abs().max().item()
    assert off < error and (rotation - torch.eye(layer.in_features)).abs().max() > 0.02
    assert rotation[:32, 32:].eq(0).all()
    x = torch.randn(2, layer.in_features)
    torch.testing.assert_close(layer(x), layer.base_layer(x @ rotation))


def test_coft_keeps_the_rotation_near_the_identity(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=oft", "tuner.coft=true", "tuner.eps=0.001"), make_batch(0, 1)
    optimizer = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_sum(supervised_logits(tuned.base, batch), batch).backward()
        optimizer.step()
    with torch.no_grad():
        supervised_logits(tuned.base, batch)
    for layer in layers(tuned.model):
        weight = layer.oft_R["default"].weight
        # Each block's skew-symmetric Q holds every entry twice; PEFT spreads eps over the blocks.
        norms = (2 * weight.square().sum(1)).sqrt()
        torch.testing.assert_close(norms, torch.full_like(norms, 0.001 / len(weight) ** 0.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1}, r"tuner\.block_size=1: must be 2 or more"),
        ({"eps": 0.0, "coft": True}, r"tuner\.eps=0\.0: must be more than 0"),
        ({"eps": 0.1}, r"tuner\.eps=0\.1: takes effect with tuner\.coft=true only"),
        ({"neumann_terms": 1}, r"tuner\.neumann_terms=1: must be 2 or more, or 0"),
        ({"dropout": 0.5, "block_share": True}, r"tuner\.dropout=0\.5: can not take effect with tuner\.block_share"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        OftConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tuner.block_size=64"], r"tuner\.block_size=64: does not divide the 96 inputs of .*q_proj"),
        (["tuner.dropout=0.1"], r"tuner\.dropout=0\.1: is less than one of the 3 blocks of .*q_proj"),
    ],
)
def test_layers_that_can_not_be_cut_are_refused_by_name(make_tuned, options, message):
    """PEFT would take the nearest size that divides."""
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=oft", *options)
