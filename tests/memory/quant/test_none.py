"""memory/quant=none: the default, whether it is named or a stored config is older than the group."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from harness import config, registry
from harness.compose import compose_config
from harness.errors import UserError
from harness.memory.first_device import first_device


def test_is_the_default_and_changes_nothing(make_config, make_base):
    assert make_config().memory.quant == make_config("memory/quant=none").memory.quant
    model, before = make_base()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not [m for m in model.modules() if isinstance(m, nn.Linear) and type(m) is not nn.Linear]


def test_weights_are_read_to_the_device_itself(make_config):
    cuda = torch.device("cuda")
    assert first_device(make_config().memory, cuda) == cuda
    assert first_device(make_config("memory/quant=bnb4").memory, cuda) == torch.device("cpu")


def test_a_config_from_before_the_group_loads(tmp_path):
    stored = compose_config([])
    del stored.memory.quant
    OmegaConf.save(stored, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml").memory.quant.name == "none"


def test_a_stored_choice_comes_back(tmp_path, make_config):
    config.save(compose_config(["memory/quant=hqq", "memory.quant.bits=2"]), tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml").memory == make_config("memory/quant=hqq", "memory.quant.bits=2").memory


def test_a_key_of_another_choice_is_unknown():
    with pytest.raises(UserError, match=r"memory\.quant\.bits=4: no such key.*Known below memory\.quant: .*blocksize"):
        compose_config(["memory/quant=bnb4", "memory.quant.bits=4"])
    with pytest.raises(UserError, match=r"memory/quant=gguf: no such option.*Known: .*bnb4"):
        compose_config(["memory/quant=gguf"])
    assert registry.names("memory/quant") == registry.options("memory/quant")
