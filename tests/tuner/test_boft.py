import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.errors import UserError
from harness.tuner import rotated
from harness.tuner.boft import BoftConfig


class Largest(TorchDispatchMode):
    """Sees how many numbers the largest tensor has that an operator makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


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


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["tuner.block_size=2", "freeze=none"],
        ["tuner.block_size=32", "freeze=none"],
        ["tuner.block_size=96", "tuner.target_modules=[q_proj,down_proj]"],
        ["tuner.block_size=0", "tuner.block_num=1", "tuner.target_modules=[q_proj]"],
        ["tuner.block_size=0", "tuner.block_num=16"],
    ],
    ids=" ".join,
)
def test_a_training_step_is_that_of_peft(against_peft, options):
    """With freeze=none among layers with a bias, those of the ViT."""
    (logits, grads), (expected, expected_grads), found = against_peft("tuner=boft", *options, spread=0.1)
    assert found and any(layer.base_layer.bias is not None for layer in found) == ("freeze=none" in options)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert all(grad.abs().max() > 0 for grad in grads.values())
    for key, grad in expected_grads.items():
        torch.testing.assert_close(grads[key], grad, atol=1e-5, rtol=1e-5, msg=key)


@pytest.fixture
def layer(make_tuned):
    """A down_proj of 192 inputs away from its start, in training."""
    tuned = make_tuned("tuner=boft", "tuner.dropout=0.5").model
    layer = next(module for module in layers(tuned) if module.in_features == 192).train()
    torch.nn.init.normal_(layer.boft_R["default"], std=0.3)
    torch.nn.init.normal_(layer.boft_s["default"], mean=1.0, std=0.3)
    return layer


def without_dropout(layer):
    layer.boft_dropout["default"] = torch.nn.Identity()
    return layer


def test_nothing_of_inputs_x_inputs_is_made(layer):
    x = torch.randn(2, layer.in_features, requires_grad=True)
    with Largest() as seen:
        layer(x).sum().backward()
    assert layer.base_layer.weight.numel() < layer.in_features**2
    assert seen.numbers == layer.base_layer.weight.numel(), "its transpose"
    with Largest() as seen, torch.no_grad():
        rotated.rotate(x, rotated.cayley(layer.boft_R["default"][0]))
    assert seen.numbers <= layer.in_features * rotated._WIDTH
    with Largest() as seen:
        layer.forward_apart(x)
    assert seen.numbers == layer.in_features**2


def test_dropout_keeps_its_share_of_blocks_still_and_another_share_in_the_next_step(layer):
    blocks = rotated.cayley(layer.boft_R["default"][0])
    one = torch.eye(4)

    def still():
        x = torch.eye(layer.in_features)
        # The rotation is read off a layer that is otherwise the identity.
        layer.base_layer = torch.nn.Identity()
        layer.base_layer.bias = None
        layer.boft_s["default"].data = torch.ones(layer.in_features, 1)
        rotation = layer(x).detach()
        seen = rotation.unflatten(0, (-1, 4)).unflatten(-1, (-1, 4)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        stays = torch.tensor([torch.equal(block, one) for block in seen])
        torch.testing.assert_close(seen[~stays], blocks[~stays])
        return stays

    first, second = still(), still()
    assert first.sum() == second.sum() == len(blocks) // 2 and not torch.equal(first, second)


def test_layers_that_are_off_or_merged_go_the_way_of_peft(layer):
    x = torch.randn(3, layer.in_features)
    layer = without_dropout(layer)
    calls = []
    apart = layer.forward_apart
    layer.forward_apart = lambda x: calls.append(1) or apart(x)
    with torch.no_grad():
        changed = layer(x)
        assert not calls
        torch.testing.assert_close(layer.eval()(x), changed, atol=1e-5, rtol=1e-5)
        layer.train().enable_adapters(False)
        torch.testing.assert_close(layer(x), layer.base_layer(x))
        layer.enable_adapters(True)
        layer.merge()
        torch.testing.assert_close(layer(x), changed, atol=1e-5, rtol=1e-5)
        layer.unmerge()
        assert len(calls) == 2
        torch.testing.assert_close(layer(x), changed, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2 and (changed - layer.base_layer(x)).abs().max() > 0.1


@pytest.mark.parametrize("dropout", [False, True])
def test_a_step_is_one_graph(layer, dropout):
    layer = layer if dropout else without_dropout(layer)
    x, results = torch.randn(3, layer.in_features), []
    for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        layer.zero_grad()
        out = forward(x)
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in layer.parameters() if p.requires_grad)])
    torch.testing.assert_close(*results)


def test_autocast_changes_the_type_of_the_products_alone(layer):
    layer, x = without_dropout(layer), torch.randn(64, layer.in_features)
    expected = layer(x)
    layer.base_layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, narrow = layer(x), layer(x.bfloat16())
    assert (ours.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert (ours - expected).norm() < 0.01 * expected.norm()
    narrow.float().square().sum().backward()
    assert all(layer.get_parameter(f"boft_{key}.default").grad.dtype == torch.float32 for key in "Rs")


def test_scales_are_as_good_in_bfloat16_as_in_float32(layer):
    """1.005 is 1.0078 in bfloat16, which would change every third number."""
    layer = without_dropout(layer)
    layer.boft_R["default"].data.zero_()
    layer.boft_s["default"].data.fill_(1.005)
    layer.base_layer.bfloat16()
    x = torch.randn(512, layer.in_features).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, expected = layer(x), layer.forward_apart(x)
    assert (ours == expected).float().mean() > 0.995
    rough = (layer.base_layer(x) * layer.boft_s["default"].squeeze(-1).bfloat16()) == expected
    assert rough.float().mean() < 0.8


@pytest.mark.gpu
def test_a_step_on_a_gpu_waits_for_nothing_and_compiles(layer, check_on_gpu):
    check_on_gpu(without_dropout(layer))
