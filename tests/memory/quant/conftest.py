import copy

import pytest
import torch

from harness import registry
from harness.memory.quant.linear import quantized_layers

CPU = torch.device("cpu")


@pytest.fixture
def make_quantized(make_config, load_model, outlook):
    """Loads the tiny model on a quantised base with a tuner and a freeze policy; returns what it is tuned to."""

    def make(*overrides: str):
        config = make_config(*overrides)
        loaded = load_model(config.model)
        registry.build("memory/quant", config.memory.quant, loaded.model, CPU)
        policy = registry.build("freeze", config.freeze, loaded.model)
        return registry.build("tuner", config.tuner, loaded, policy, outlook)

    return make


@pytest.fixture
def make_base(make_config, load_model):
    """Loads the tiny model with a quantised base, and its weights as they were."""

    def make(*overrides: str):
        config = make_config(*overrides)
        model = load_model(config.model).model
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        registry.build("memory/quant", config.memory.quant, model, CPU)
        return model, before

    return make


@pytest.fixture
def dense(make_config, load_model):
    """Makes the plain model whose weights are what the quantised one computes with."""

    def make(quantized, *overrides: str):
        model = load_model(make_config(*overrides).model).model
        for name, layer in quantized_layers(quantized):
            plain = model.get_submodule(name.replace("base_model.model.", "").replace(".base_layer", ""))
            plain.weight.data.copy_(copy.deepcopy(layer.weight.detach()))
        return model

    return make
