import pytest
import torch

from harness.errors import UserError
from harness.tuner.boft import BoftConfig


def layers(model):
    return [module for module in model.modules() if hasattr(module, "boft_R")]


@pytest.mark.parametrize(
    ("options", "size"),
    [([], lambda inputs: 4), (["tuner.block_size=0", "tuner.block_num=8"], lambda inputs: inputs // 8)],
    ids=["size", "number"],
)
def test_trainable_count_is_inputs_times_block_size_and_a_scale_an_output(make_tuned, options, size):
    """Blocks of b x b on the diagonal (arXiv 2311.06243, section 4.2), one factor, and PEFT's scales."""
    model = make_tuned("tuner=boft", "freeze=none", *options).model
    expected = sum(layer.in_features * size(layer.in_features) + layer.out_features for layer in layers(model))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_inputs_are_rotated_and_outputs_scaled(make_tuned):
    layer = layers(make_tuned("tuner=boft").model)[0]
    torch.nn.init.normal_(layer.boft_R["default"])
    torch.nn.init.normal_(layer.boft_s["default"])
    rotation, scale = layer.get_delta_weight("default")
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(layer.in_features), atol=1e-5, rtol=0)
    assert (rotation - torch.eye(layer.in_features)).abs().max() > 0.5
    x = torch.randn(2, layer.in_features)
    torch.testing.assert_close(layer(x), layer.base_layer(x @ rotation) * scale.squeeze(-1), atol=1e-4, rtol=1e-4)


def test_permutations_of_a_size_are_held_once_and_in_the_base_s_type(make_tuned):
    """Dense, inputs x inputs, for each layer they would take more memory than the model."""
    model = make_tuned("tuner=boft", "model.dtype=bfloat16").model.to(torch.device("cpu"))
    held = {(layer.in_features, layer.boft_P.data_ptr()) for layer in layers(model)}
    assert sorted(size for size, _ in held) == [96, 128, 192]
    assert {layer.boft_P.dtype for layer in layers(model)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": -1}, r"tuner\.block_size=-1: must be 0 or more"),
        ({"block_num": 2}, r"tuner\.block_num=2: stands instead of tuner\.block_size=4: set that to 0"),
        ({"block_size": 0}, r"tuner\.block_size=0: give it or tuner\.block_num"),
        ({"block_size": 1}, r"tuner\.block_size=1: has nothing to rotate"),
        ({"n_butterfly_factor": 0}, r"tuner\.n_butterfly_factor=0: must be 1 or more"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BoftConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tuner.block_size=5"], r"tuner\.block_size=5: does not divide the 96 inputs of .*q_proj"),
        (["tuner.block_size=0", "tuner.block_num=7"], r"tuner\.block_num=7: does not divide the 96 inputs of "),
        (["tuner.block_size=0", "tuner.block_num=96"], r"tuner\.block_num=96: leaves blocks of one of the 96 inputs"),
        (["tuner.block_size=48", "tuner.n_butterfly_factor=3", "tuner.target_modules=[q_proj]"], "has 2 of 48"),
        (["tuner.n_butterfly_factor=2"], r"tuner\.n_butterfly_factor=2: needs a GPU and PEFT's CUDA extension.*; set"),
        (["tuner.dropout=0.01"], r"tuner\.dropout=0\.01: is less than one of the 24 blocks of .*q_proj"),
    ],
)
def test_what_can_not_take_effect_is_refused(make_tuned, options, message):
    """PEFT sets the factor to 1 where its extension is missing."""
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=boft", *options)
