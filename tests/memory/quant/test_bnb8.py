"""LLM.int8: the library's own layer's values, outliers apart, the gradient of the weight read back."""

import pytest
import torch

from harness.errors import UserError
from harness.memory.quant.linear import quantized_layers

pytest.importorskip("bitsandbytes", reason="extra quant")
NAME = "model.language_model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("threshold", [6.0, 0.0])
# The library says each time that it casts to float16.
@pytest.mark.filterwarnings("ignore")
def test_product_and_gradient_are_those_of_the_librarys_layer(make_base, threshold):
    import bitsandbytes as bnb

    model, before = make_base("memory/quant=bnb8", f"memory.quant.threshold={threshold}")
    ours, weight = model.get_submodule(NAME), before[f"{NAME}.weight"]
    theirs = bnb.nn.Linear8bitLt(
        ours.in_features, ours.out_features, bias=False, has_fp16_weights=False, threshold=threshold
    )
    theirs.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    # In training the library multiplies with the weight read back, on CPUs alone.
    theirs.to("cpu").eval()
    x = torch.randn(2, 5, ours.in_features)
    x[0, 2, 7] = 30.0
    x.requires_grad_()
    ys = [layer(x) for layer in (ours, theirs)]
    torch.testing.assert_close(*ys, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in ys]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def test_an_outlier_costs_less_with_a_threshold(make_base):
    x = torch.randn(5, 96)
    x[:, 7] = 60.0
    errors = []
    for threshold in ("6", "0"):
        layer = make_base("memory/quant=bnb8", f"memory.quant.threshold={threshold}")[0].get_submodule(NAME)
        exact = x @ layer.weight.t()
        errors.append((layer(x) - exact).norm() / exact.norm())
    assert errors[0] < 0.5 * errors[1]


def test_bytes_are_those_predicted(make_config, make_base):
    config = make_config("memory/quant=bnb8").memory.quant
    for _, layer in quantized_layers(make_base("memory/quant=bnb8")[0]):
        assert layer.nbytes == config.bytes_of(layer.out_features, layer.in_features, layer.dtype.itemsize)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does
def test_compiles_without_a_break_outliers_or_not(make_base):
    torch._dynamo.reset()
    layer = make_base("memory/quant=bnb8")[0].get_submodule(NAME)
    x = torch.randn(7, layer.in_features, requires_grad=True)
    program = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(run(x).square().sum(), x)[0] for run in (program, layer))
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def test_a_negative_threshold_is_refused(make_config):
    with pytest.raises(UserError, match=r"memory\.quant\.threshold=-1\.0: must be more than 0"):
        make_config("memory/quant=bnb8", "memory.quant.threshold=-1")
