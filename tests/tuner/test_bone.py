import pytest
import torch

from harness.errors import UserError
from harness.tuner.bone import BoneConfig

COUNTS = {
    ("tuner.init=true", "tuner.rank=16"): lambda inputs, outputs: 16 * outputs,
    ("tuner.init=bat", "tuner.rank=16"): lambda inputs, outputs: 16 * outputs,
    ("tuner.init=mini", "tuner.rank=16", "tuner.mini_rank=4"): lambda inputs, outputs: 16 * 4,
}


def layers(model):
    return [module for module in model.modules() if hasattr(module, "miss_block")]


def some_layer(make_tuned, *options):
    layer = layers(make_tuned("tuner=bone", *options).model)[0]
    torch.nn.init.normal_(layer.miss_block["default"])
    return layer, layer.miss_block["default"], torch.randn(3, layer.in_features)


@pytest.mark.parametrize("options", COUNTS, ids=" ".join)
def test_trainable_count_is_that_of_the_paper(make_tuned, options):
    """Rank x outputs, and rank x mini_rank where columns repeat (arXiv 2409.15371)."""
    model = make_tuned("tuner=bone", "freeze=none", *options).model
    expected = sum(COUNTS[options](layer.in_features, layer.out_features) for layer in layers(model))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("rank", [16, 40])
def test_update_sums_the_inputs_in_blocks(make_tuned, rank):
    """Every input of a block has the same row of D; a last block that is not whole is one of zeros more (rank 40)."""
    layer, block, x = some_layer(make_tuned, f"tuner.rank={rank}")
    update = block.repeat(-(-layer.in_features // rank), 1)[: layer.in_features]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update)


def test_mini_repeats_its_columns(make_tuned):
    layer, block, x = some_layer(make_tuned, "tuner.init=mini", "tuner.rank=16", "tuner.mini_rank=4")
    update = block.repeat(layer.in_features // 16, layer.out_features // 4)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update)


def test_bat_multiplies_the_blocks_of_the_weight(make_tuned):
    layer, block, x = some_layer(make_tuned, "tuner.init=bat", "tuner.rank=32")
    weight = layer.base_layer.weight.clone()
    for i in range(layer.out_features // 32):
        for j in range(layer.in_features // 32):
            part = layer.base_layer.weight[i * 32 : (i + 1) * 32, j * 32 : (j + 1) * 32]
            weight[i * 32 : (i + 1) * 32, j * 32 : (j + 1) * 32] = part @ (torch.eye(32) + block[i]) + block[i]
    torch.testing.assert_close(layer(x), x @ weight.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("init", ["true", "bat", "mini"])
def test_start_is_unchanged_but_with_init_false(make_tuned, init):
    blocks = [
        layer.miss_block["default"]
        for layer in layers(make_tuned("tuner=bone", f"tuner.init={init}", "tuner.rank=32").model)
    ]
    assert not any(block.any() for block in blocks)
    assert layers(make_tuned("tuner=bone", "tuner.init=false").model)[0].miss_block["default"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"tuner\.rank=0: must be 1 or more"),
        ({"init": "bats"}, r"tuner\.init=bats: known: true, false, bat, mini"),
        ({"mini_rank": 0, "init": "mini"}, r"tuner\.mini_rank=0: must be 1 or more"),
        ({"mini_rank": 2}, r"tuner\.mini_rank=2: takes effect with tuner\.init=mini only"),
        ({"dropout": 0.1, "init": "bat"}, r"tuner\.dropout=0\.1: can not take effect with tuner\.init=bat"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BoneConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tuner.rank=97"], r"tuner\.rank=97: is more than the 96 inputs of .*q_proj"),
        (["tuner.rank=64", "tuner.init=bat"], r"tuner\.rank=64: does not divide the 96 inputs and 128 outputs of "),
        (["tuner.init=mini", "tuner.mini_rank=3"], r"tuner\.mini_rank=3: does not divide the 128 outputs of "),
    ],
)
def test_layers_that_can_not_be_cut_are_refused_by_name(make_tuned, options, message):
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=bone", *options)
