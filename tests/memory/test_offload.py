"""Offload gives back what it took, to the bit, holds only layer inputs, and is refused where there is no GPU."""

import weakref

import pytest
import torch
from torch import nn

from harness import registry
from harness.errors import UserError
from harness.memory.checkpointing import set_policy
from harness.memory.offload import Offload
from harness.model.block import call


def make_layers(number, width, device):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.GELU()).to(device) for _ in range(number)]
    for layer in layers:
        set_policy(layer, "full")
    return layers


def gradients(layers, x):
    hidden = x.clone().requires_grad_()
    first = hidden
    for layer in layers:
        hidden = call(layer, layer, hidden)
    hidden.square().sum().backward()
    return [first.grad, *(p.grad for layer in layers for p in layer.parameters())]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradients_are_the_same_bit_for_bit(device):
    width = 2048 if device == "cuda" else 16
    x = torch.randn(width, width, device=device)
    expected = gradients(make_layers(6, width, device), x)
    layers, offload = make_layers(6, width, device), Offload()
    for layer in layers:
        offload.attach(layer)
    for _ in range(2):
        for layer in layers:
            layer.zero_grad()
        got = gradients(layers, x)
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert not offload._leaving and offload._last() is None


def test_only_the_layers_input_is_moved(monkeypatch):
    parked = []
    offload, (layer,) = Offload(), make_layers(1, 16, "cpu")
    monkeypatch.setattr(offload, "park", lambda tensor: parked.append(tensor.shape) or tensor)
    offload.attach(layer)
    gradients([layer], torch.randn(5, 16))
    assert parked == [(5, 16)]


def test_nothing_holds_what_has_left():
    layers, offload, hidden, inputs = make_layers(4, 16, "cpu"), Offload(), torch.randn(5, 16, requires_grad=True), []
    for layer in layers:
        offload.attach(layer)
        hidden = call(layer, layer, hidden)
        inputs.append(weakref.ref(hidden))
    assert [held() is not None for held in inputs] == [False, False, False, True]
    hidden.sum().backward()


def test_nothing_is_moved_in_validation(monkeypatch):
    offload, (layer,) = Offload(), make_layers(1, 16, "cpu")
    monkeypatch.setattr(offload, "park", None)
    offload.attach(layer)
    layer.eval()
    call(layer, layer, torch.randn(5, 16, requires_grad=True)).sum().backward()


def test_is_refused_on_the_cpu(make_config, make_tuned):
    config = make_config("memory.checkpointing=full", "memory.offload_activations=true").memory
    with pytest.raises(UserError, match=r"memory\.offload_activations=true: needs a GPU"):
        registry.build("memory", config, make_tuned().base)


@pytest.mark.gpu
def test_a_gpu_holds_few_of_the_inputs():
    peaks = []
    for parks in (False, True):
        layers, offload = make_layers(24, 1024, "cuda"), Offload()
        for layer in layers:
            if parks:
                offload.attach(layer)
        x = torch.randn(2**14, 1024, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        gradients(layers, x)
        peaks.append((torch.cuda.max_memory_allocated() - start) / x.nbytes)
        del layers
    assert peaks[1] < peaks[0] - 14
