"""bitsandbytes' 4-bit weights: its own layer's values, QLoRA's sizes, and compiled code that keeps no matrix."""

import sys
from importlib.util import find_spec

import pytest
import torch
import torch._dynamo.testing

from harness import registry
from harness.errors import UserError
from harness.memory.quant.bnb4 import Bnb4Config
from harness.memory.quant.linear import QuantLinear, quantized_layers

needs_bnb = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="extra quant")
CHOICES = [
    [],
    ["memory.quant.code=fp4"],
    ["memory.quant.double_quant=false", "memory.quant.blocksize=128"],
    ["memory.quant.storage=bfloat16"],
    ["model.dtype=bfloat16"],
]
NAME = "model.language_model.layers.1.mlp.up_proj"


@needs_bnb
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_product_and_gradient_are_those_of_the_librarys_layer(make_config, make_base, choice):
    import bitsandbytes as bnb

    config = make_config("memory/quant=bnb4", *choice).memory.quant
    model, before = make_base("memory/quant=bnb4", *choice)
    ours, weight = model.get_submodule(NAME), before[f"{NAME}.weight"]
    theirs = bnb.nn.Linear4bit(ours.in_features, ours.out_features, bias=False, compute_dtype=weight.dtype)
    theirs.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        quant_type=config.code.name,
        compress_statistics=config.double_quant,
        blocksize=config.blocksize,
    )
    theirs.to("cpu")
    x = torch.randn(2, 5, ours.in_features, dtype=weight.dtype, requires_grad=True)
    ys = [layer(x) for layer in (ours, theirs)]
    assert torch.equal(*ys) and ys[0].dtype == weight.dtype
    assert torch.equal(*(torch.autograd.grad(y.float().square().sum(), x)[0] for y in ys))
    dequantized = bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    assert torch.equal(ours.weight, dequantized)
    # nf4's error on normal weights is some 9 %.
    assert (ours.weight - weight).norm() < 0.14 * weight.norm()


@needs_bnb
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_bytes_are_those_predicted(make_config, make_base, choice):
    config = make_config("memory/quant=bnb4", *choice).memory.quant
    for _, layer in quantized_layers(make_base("memory/quant=bnb4", *choice)[0]):
        assert layer.nbytes == config.bytes_of(layer.out_features, layer.in_features, layer.dtype.itemsize)


def test_bits_a_weight_are_the_papers():
    bits = [8 * Bnb4Config(double_quant=double).bytes_of(4096, 4096, 2) / 4096**2 for double in (True, False)]
    assert bits == [pytest.approx(4.127, abs=1e-3), 4.5]


@needs_bnb
def test_compute_type_is_that_of_the_product(make_base):
    x = torch.randn(3, 96)
    plain, rounded = (
        make_base("memory/quant=bnb4", f"memory.quant.compute_dtype={dtype}")[0].get_submodule(NAME)
        for dtype in ("auto", "bfloat16")
    )
    expected = (x.bfloat16() @ rounded.weight.bfloat16().t()).float()
    assert torch.equal(rounded(x), expected) and not torch.equal(plain(x), expected)
    # Under autocast the product stays in the type that was asked for, and the result has autocast's.
    exact = make_base("memory/quant=bnb4", "memory.quant.compute_dtype=float32")[0].get_submodule(NAME)
    bits = (plain.weight_data, *plain.side)
    with torch.autocast("cpu", torch.bfloat16):
        found, follows = exact(x), plain(x)
    assert torch.equal(found, (x @ exact.weight.t()).bfloat16())
    assert torch.equal(follows, x.bfloat16() @ plain.codec.weight(bits, torch.bfloat16, x).t())


@needs_bnb
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does
def test_compiled_layers_share_a_program_that_keeps_the_bits_alone(make_base):
    torch._dynamo.reset()
    backend = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    program = torch.compile(lambda layer, x: layer(x).sin(), fullgraph=True, backend=backend)
    kept: list[torch.Tensor] = []
    layers = [layer.mlp.up_proj for layer in make_base("memory/quant=bnb4")[0].model.language_model.layers]
    for layer in layers:
        x = torch.randn(7, layer.in_features, requires_grad=True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = program(layer, x)
        found, expected = (torch.autograd.grad(out.sum(), x)[0] for out in (y, layer(x).sin()))
        assert torch.equal(found, expected)
        assert not [t for t in kept if t.is_floating_point() and t.numel() == layer.in_features * layer.out_features]
    assert backend.frame_count == 1
    torch._dynamo.reset()


@needs_bnb
def test_casting_the_model_leaves_bits_and_scales(make_base):
    model = make_base("memory/quant=bnb4", "memory.quant.storage=float32")[0]
    layer = model.get_submodule(NAME)
    before = layer.weight
    model.to(torch.bfloat16)
    assert torch.equal(layer.weight, before) and {t.dtype for t in layer.side} == {torch.float32, torch.uint8}
    moved = layer.to("meta")
    assert {moved.weight_data.device.type, *(t.device.type for t in moved.side)} == {"meta"}


def test_other_block_sizes_are_refused(make_config):
    with pytest.raises(UserError, match=r"memory\.quant\.blocksize=65: known: 32, 64"):
        make_config("memory/quant=bnb4", "memory.quant.blocksize=65")


def test_the_missing_library_is_named_with_its_extra(make_config, load_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.delitem(sys.modules, "harness.memory.quant.bnb4_codec", raising=False)
    config = make_config("memory/quant=bnb4")
    with pytest.raises(UserError, match=r"memory/quant=bnb4: bitsandbytes is not installed .*\[quant\]"):
        registry.build("memory/quant", config.memory.quant, load_model(config.model).model, torch.device("cpu"))


@pytest.mark.gpu
@needs_bnb
def test_the_gpus_values_are_the_hosts(make_config, make_base, load_model):
    model, _ = make_base("memory/quant=bnb4", "model.dtype=bfloat16")
    config = make_config("memory/quant=bnb4", "model.dtype=bfloat16")
    on_gpu = load_model(config.model).model
    registry.build("memory/quant", config.memory.quant, on_gpu, torch.device("cuda"))
    assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}
    ours, host = on_gpu.get_submodule(NAME), model.get_submodule(NAME)
    assert isinstance(ours, QuantLinear)
    # Both round to the nearest code; a tie may fall otherwise.
    assert (ours.weight.cpu() != host.weight).float().mean() < 1e-3
    x = torch.randn(9, ours.in_features, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    results = [(y, torch.autograd.grad(y.float().sum(), x)[0]) for y in (ours(x), x @ ours.weight.t())]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
