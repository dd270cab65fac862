"""optimum-quanto: the library's own values."""

import pytest
import torch

from harness.errors import UserError
from harness.memory.quant.linear import quantized_layers

pytest.importorskip("optimum.quanto", reason="extra quant")
NAME = "model.language_model.layers.1.mlp.up_proj"
KINDS = ["int8", "float8", "int4", "int2"]


def options(kind):
    return ["memory/quant=quanto", f"memory.quant.weights={kind}", "memory.quant.group_size=32"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_library(make_base, kind):
    from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qtypes, quantize_weight

    model, before = make_base(*options(kind))
    weight, ours = before[f"{NAME}.weight"], model.get_submodule(NAME)
    qtype = qtypes[f"q{kind}" if kind != "float8" else "qfloat8"]
    if qtype.bits == 8:
        theirs = quantize_weight(weight, qtype, 0, AbsmaxOptimizer()(weight, qtype=qtype, axis=0))
    else:
        scale, shift = MaxOptimizer()(weight, qtype=qtype, axis=0, group_size=32)
        theirs = quantize_weight(weight, qtype, 0, scale, shift, group_size=32, optimized=False)
    torch.testing.assert_close(ours.weight, theirs.dequantize(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_predicted(make_config, make_base, kind, dtype):
    chosen = [*options(kind), f"model.dtype={dtype}"]
    config = make_config(*chosen).memory.quant
    for _, layer in quantized_layers(make_base(*chosen)[0]):
        assert layer.nbytes == config.bytes_of(layer.out_features, layer.in_features, layer.dtype.itemsize)


def test_groups_that_do_not_fit_are_refused_with_the_layer(make_base, make_config):
    with pytest.raises(UserError, match=r"memory\.quant\.group_size=128: does not divide the \d+ inputs of model"):
        make_base("memory/quant=quanto", "memory.quant.weights=int4")
    with pytest.raises(UserError, match=r"memory\.quant\.group_size=1: must be 2 or more"):
        make_config("memory/quant=quanto", "memory.quant.group_size=1")
