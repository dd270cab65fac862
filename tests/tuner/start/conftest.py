import pytest


@pytest.fixture
def start_of(make_tuned):
    """Returns the weight of a layer before, and the adapted layer, for a start and other overrides."""

    def make(name, *overrides):
        full = f"model.{name}"
        before = make_tuned("tuner=full").base.get_submodule(full).weight.detach().clone()
        return before, make_tuned("tuner=lora", *overrides).base.get_submodule(full)

    return make


@pytest.fixture
def product():
    """Returns LoRA's scale times B A of an adapted layer."""

    def of(layer):
        return layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight

    return of
