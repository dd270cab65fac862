"""torchao's weight-only integers: the library's own values."""

import pytest
import torch

from harness.errors import UserError
from harness.memory.quant.linear import quantized_layers

pytest.importorskip("torchao", reason="extra quant")
NAME = "model.language_model.layers.1.mlp.up_proj"
KINDS = ["int8", "int4"]


def options(kind):
    return ["memory/quant=torchao", f"memory.quant.weights={kind}", "memory.quant.group_size=32"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_library(make_base, kind):
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model, before = make_base(*options(kind))
    weight, ours = before[f"{NAME}.weight"], model.get_submodule(NAME)
    theirs = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    theirs.weight.data = weight.clone()
    config = (
        Int8WeightOnlyConfig(set_inductor_config=False)
        if kind == "int8"
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    )
    quantize_(theirs, config)
    torch.testing.assert_close(ours.weight, theirs.weight.dequantize().detach(), atol=1e-6, rtol=1e-6)
    x = torch.randn(5, weight.shape[1])
    torch.testing.assert_close(ours(x), theirs(x).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_predicted(make_config, make_base, kind, dtype):
    chosen = [*options(kind), f"model.dtype={dtype}"]
    config = make_config(*chosen).memory.quant
    for _, layer in quantized_layers(make_base(*chosen)[0]):
        assert layer.nbytes == config.bytes_of(layer.out_features, layer.in_features, layer.dtype.itemsize)


def test_groups_that_do_not_fit_are_refused_with_the_layer(make_base, make_config):
    with pytest.raises(UserError, match=r"memory\.quant\.group_size=128: does not divide the \d+ inputs of model"):
        make_base("memory/quant=torchao", "memory.quant.weights=int4")
    with pytest.raises(UserError, match=r"memory\.quant\.group_size=1: must be 2 or more"):
        make_config("memory/quant=torchao", "memory.quant.group_size=1")
