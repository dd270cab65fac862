"""Which weights each policy lets train, under full fine-tuning and under adapters."""

import pytest

from harness import registry
from harness.errors import UserError
from harness.freeze.component import ComponentFreezeConfig
from harness.model.component import Component, component_of

FREE = {
    "vit_aligner": {Component.llm},
    "vit": {Component.llm, Component.aligner},
    "llm_vit": {Component.aligner},
    "aligner": {Component.llm, Component.vit},
    "llm": {Component.aligner, Component.vit},
    "none": set(Component),
}


def test_the_table_names_every_policy():
    assert set(FREE) == set(registry.options("freeze")) - {"component", "prefix", "ratio", "regex"}


@pytest.mark.parametrize("policy", FREE)
def test_full_fine_tuning_trains_what_is_not_frozen(make_tuned, policy):
    model = make_tuned("tuner=full", f"freeze={policy}").model
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (component_of(name) in FREE[policy]), name


@pytest.mark.parametrize("policy", FREE)
def test_adapters_go_where_the_policy_lets_them(make_tuned, policy):
    model = make_tuned("tuner=lora", f"freeze={policy}").model
    assert {component_of(name) for name, p in model.named_parameters() if p.requires_grad} == FREE[policy]
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="freezes everything: nothing can train"):
        ComponentFreezeConfig(frozen=list(Component))
