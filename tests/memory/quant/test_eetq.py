"""EETQ, with kernels that stand for those of the hub: what is asked of them, and what is said where they are not."""

import sys
from types import SimpleNamespace

import pytest
import torch

from harness import registry
from harness.errors import UserError
from harness.memory.quant import eetq_codec
from harness.memory.quant.eetq import KERNELS
from harness.memory.quant.linear import QuantLinear


def quant_weights(weight_DE, dtype, return_unprocessed):
    scale_E = weight_DE.abs().amax(0).float() / 127
    return (weight_DE.float() / scale_E).round().to(dtype), scale_E.half()


def w8_a16_gemm(x_TD, data_DE, scale_E):
    assert x_TD.dtype is torch.float16
    return (x_TD.float() @ data_DE.float() * scale_E.float()).half()


FAKE = SimpleNamespace(quant_weights=quant_weights, w8_a16_gemm=w8_a16_gemm)


def test_product_and_gradient_are_those_of_the_kernels(monkeypatch, make_config):
    eetq_codec.use_kernels(FAKE)
    weight_ED = torch.randn(48, 32)
    layer = QuantLinear(eetq_codec.quantized(weight_ED), (48, 32), None, torch.float32)
    x = torch.randn(2, 5, 32, requires_grad=True)
    expected = x @ weight_ED.t()
    assert (layer(x) - expected).norm() < 0.01 * expected.norm()
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (layer(x), expected)]
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()
    assert layer.nbytes == make_config("memory/quant=eetq").memory.quant.bytes_of(48, 32, 4)


def build(make_config, load_model, device):
    config = make_config("memory/quant=eetq")
    registry.build("memory/quant", config.memory.quant, load_model(config.model).model, torch.device(device))


def test_a_cpu_is_refused(make_config, load_model):
    with pytest.raises(UserError, match=r"memory/quant=eetq: has kernels for NVIDIA GPUs alone, and this is a cpu"):
        build(make_config, load_model, "cpu")


def test_the_missing_package_is_named_with_its_extra(make_config, load_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(UserError, match=r"memory/quant=eetq: kernels is not installed .*\[eetq\]"):
        build(make_config, load_model, "cuda")


def test_kernels_that_can_not_be_had_are_named(make_config, load_model, monkeypatch):
    def get_kernel(name, version):
        assert (name, version) == (KERNELS, 1)
        raise OSError("no network\nat all")

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=get_kernel))
    with pytest.raises(UserError, match=r"quantization-eetq can not be had \(no network\); use bnb8"):
        build(make_config, load_model, "cuda")
