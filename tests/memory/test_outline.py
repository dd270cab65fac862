"""Without weights a model is predicted to need what it needs with them."""

import pytest
import torch

from harness import registry
from harness.data.extent import Extent
from harness.errors import UserError
from harness.memory.outline import outline
from harness.memory.resolve import sizes_of

CPU, EXTENT = torch.device("cpu"), Extent(512, 128, 64)


@pytest.mark.parametrize(
    "choice",
    [
        ["tuner=lora"],
        ["tuner=lora", "model.dtype=bfloat16", "freeze=none"],
        ["tuner=dora", "tuner.rank=4"],
        ["tuner=full", "freeze=none", "optim=sgd"],
        ["tuner=vera"],
        ["tuner=llamapro"],
    ],
    ids=" ".join,
)
def test_sizes_are_those_of_the_model_with_weights(make_config, make_tuned, choice):
    config = make_config(*choice)
    bare = outline(config)
    assert {p.device.type for p in bare.model.parameters()} == {"meta"}
    assert sizes_of(config, bare, EXTENT, CPU) == sizes_of(config, make_tuned(*choice), EXTENT, CPU)


@pytest.mark.parametrize("init", ["pissa", "eva", "loftq"])
def test_starts_change_no_shape(make_config, init):
    config, plain = make_config(f"tuner.init={init}"), make_config()
    assert sizes_of(config, outline(config), EXTENT, CPU) == sizes_of(plain, outline(plain), EXTENT, CPU)


def test_the_random_state_stays(make_config):
    before = torch.get_rng_state()
    outline(make_config("tuner=lora"))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_default_dtype() is torch.float32


def test_a_tuner_that_needs_weights_is_refused(make_config):
    with pytest.raises(UserError, match="tuner=boft: memory can not be predicted without weights"):
        outline(make_config("tuner=boft"))


@pytest.mark.parametrize("tuner", ["lora", "dora"])
def test_a_base_in_few_bits_is_foreseen(make_config, load_model, outlook, tuner):
    pytest.importorskip("bitsandbytes", reason="extra quant")
    config = make_config("memory/quant=bnb4", f"tuner={tuner}")
    loaded = load_model(config.model)
    registry.build("memory/quant", config.memory.quant, loaded.model, CPU)
    policy = registry.build("freeze", config.freeze, loaded.model)
    tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
    bare, real = (sizes_of(config, item, EXTENT, CPU).fixed for item in (outline(config), tuned))
    assert bare == real
    assert real.weights < sizes_of(make_config(f"tuner={tuner}"), outline(config), EXTENT, CPU).fixed.weights
