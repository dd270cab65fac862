import re

import pytest

from harness.errors import UserError
from harness.freeze.policy import Policy
from harness.model.component import Component, component_of
from harness.tuner.target import target_regex
from harness.tuner.targeted import TargetedConfig


@pytest.fixture
def base(make_tuned):
    return make_tuned("tuner=full").base


def matched(base, targets, *components):
    free = frozenset(name for name, _ in base.named_parameters() if component_of(name) in components)
    regex = target_regex(base, TargetedConfig(target_modules=targets), Policy(free))
    return {name for name, _ in base.named_modules() if re.fullmatch(regex, name)}


def test_all_linear_takes_every_linear_of_the_component_but_the_head(base):
    names = matched(base, ["all-linear"], Component.llm)
    assert len(names) == 4 * 7 and "lm_head" not in names
    assert len(matched(base, ["all-linear"], Component.aligner)) == 2 * 4


def test_suffixes_choose_modules(base):
    assert len(matched(base, ["q_proj", "mlp.up_proj"], Component.llm)) == 4 * 2
    one = "model.language_model.layers.1.self_attn.o_proj"
    assert matched(base, ["layers.1.self_attn.o_proj"], Component.llm) == {one}


def test_a_target_that_matches_nothing_lists_the_known(base):
    with pytest.raises(UserError, match=r"lm_head: gets no adapter; tuner\.modules_to_save=\[lm_head\] trains it"):
        matched(base, ["q_proj", "lm_head"], *Component)
    with pytest.raises(UserError, match=r"query_proj: matches no linear layer; known: .*q_proj"):
        matched(base, ["query_proj"], *Component)


def test_a_target_in_frozen_components_only_is_refused(base):
    with pytest.raises(UserError, match="qkv: lies only in vit, which the freeze policy keeps frozen"):
        matched(base, ["qkv"], Component.llm)


def test_a_target_in_frozen_layers_of_a_free_component_is_refused(base):
    free = frozenset(name for name, _ in base.named_parameters() if "mlp" in name)
    with pytest.raises(
        UserError, match=r"q_proj: lies only in what the freeze policy keeps frozen, model\.language_mode"
    ):
        target_regex(base, TargetedConfig(target_modules=["q_proj"]), Policy(free))


def test_some_layers_of_a_component_are_named_one_by_one(base):
    """An index that stands for all layers would reach the frozen ones too."""
    free = frozenset(name for name, _ in base.named_parameters() if ".layers.2." in name)
    regex = target_regex(base, TargetedConfig(target_modules=["q_proj"]), Policy(free))
    reached = {name for name, _ in base.named_modules() if re.fullmatch(regex, name)}
    assert reached == {"model.language_model.layers.2.self_attn.q_proj"}


def of_layers(base, layers, targets=("all-linear",)):
    free = frozenset(name for name, _ in base.named_parameters())
    config = TargetedConfig(target_modules=list(targets), layers_to_transform=layers)
    return {name for name, _ in base.named_modules() if re.fullmatch(target_regex(base, config, Policy(free)), name)}


def test_only_the_layers_asked_for_get_an_adapter(base):
    names = of_layers(base, [0, 3])
    assert len(names) == 2 * 7 and all(re.search(r"language_model\.layers\.[03]\.", name) for name in names)
    one = "model.language_model.layers.2.self_attn.q_proj"
    assert of_layers(base, [2], ["q_proj"]) == {one}


def test_layers_that_do_not_exist_or_have_no_target_are_refused(base):
    with pytest.raises(UserError, match=r"tuner\.layers_to_transform=-1: this model's decoder layers are 0 to 3"):
        of_layers(base, [0, -1])
    with pytest.raises(UserError, match=r"layers_to_transform=\[0\]: tuner\.target_modules=qkv has nothing there"):
        of_layers(base, [0], ["q_proj", "qkv"])
