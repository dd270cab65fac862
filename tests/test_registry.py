from dataclasses import dataclass

import pytest

from harness import registry
from harness.errors import UserError


def test_refuses_a_config_without_slots():
    @dataclass(kw_only=True)
    class Loose:
        name: str = "loose"

    with pytest.raises(TypeError, match="slots=True"):
        registry.register("tuner", Loose)


def test_refuses_a_config_without_a_name():
    @dataclass(kw_only=True, slots=True)
    class Nameless:
        rank: int = 8

    with pytest.raises(TypeError, match="needs a field `name: str`"):
        registry.register("tuner", Nameless)


def test_refuses_a_name_twice():
    @dataclass(kw_only=True, slots=True)
    class Second:
        name: str = "lora"

    with pytest.raises(TypeError, match="tuner=lora is registered twice"):
        registry.register("tuner", Second)(lambda config: None)


def test_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"known: .*dora, .*full, .*lora"):
        registry.get("tuner", "lorra")
