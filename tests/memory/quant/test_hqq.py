"""HQQ: the library's own values, on both axes and at each width."""

import pytest
import torch

from harness.errors import UserError
from harness.memory.quant.linear import quantized_layers

pytest.importorskip("hqq", reason="extra hqq")
NAME = "model.language_model.layers.1.mlp.up_proj"
CHOICES = [(4, 1, 32), (4, 0, 32), (8, 1, 32), (3, 1, 32), (3, 0, 32), (2, 1, 16), (1, 1, 8)]


def options(bits, axis, group):
    return [
        "memory/quant=hqq",
        f"memory.quant.bits={bits}",
        f"memory.quant.axis={axis}",
        f"memory.quant.group_size={group}",
    ]


@pytest.mark.parametrize(("bits", "axis", "group"), CHOICES)
def test_values_are_those_of_the_librarys_layer(make_base, bits, axis, group):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model, before = make_base(*options(bits, axis, group))
    weight, ours = before[f"{NAME}.weight"], model.get_submodule(NAME)
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    plain.weight.data = weight.clone()
    settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
    theirs = HQQLinear(plain, settings, compute_dtype=torch.float32, device="cpu")
    torch.testing.assert_close(ours.weight, theirs.dequantize(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("bits", "axis", "group"), CHOICES)
def test_bytes_are_those_predicted(make_config, make_base, bits, axis, group, dtype):
    chosen = [*options(bits, axis, group), f"model.dtype={dtype}"]
    config = make_config(*chosen).memory.quant
    for _, layer in quantized_layers(make_base(*chosen)[0]):
        assert layer.nbytes == config.bytes_of(layer.out_features, layer.in_features, layer.dtype.itemsize)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory.quant.bits=5", r"memory\.quant\.bits=5: known: 8, 4, 3, 2, 1"),
        ("memory.quant.group_size=12", r"memory\.quant\.group_size=12: must be a multiple of 8"),
        ("memory.quant.axis=2", r"memory\.quant\.axis=2: must be 0"),
    ],
)
def test_what_it_has_not_is_refused(make_config, override, message):
    with pytest.raises(UserError, match=message):
        make_config("memory/quant=hqq", override)


def test_groups_that_do_not_fit_are_refused_with_the_layer(make_base):
    with pytest.raises(UserError, match=r"memory\.quant\.group_size=64: does not divide model\.language.* on its axis"):
        make_base(*options(4, 1, 64))
