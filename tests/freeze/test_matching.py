"""Policies by prefix, pattern and share: which weights train, where adapters go, and each mistake."""

import re

import pytest

from harness.errors import UserError
from harness.freeze.component import ComponentFreezeConfig, build
from harness.freeze.matching import bottom

LAYER = "model.language_model.layers.0"


@pytest.fixture(scope="module")
def base(make_config):
    from harness.model.loading import load

    return load(make_config().model).model


def _free(base, **fields):
    return build(ComponentFreezeConfig(**{"frozen": []} | fields), base).free


def _names(base):
    return {name for name, _ in base.named_parameters()}


def test_a_prefix_freezes_what_is_below_it_and_ends_at_a_dot(base):
    frozen = _names(base) - _free(base, prefixes=[LAYER])
    assert frozen == {name for name in _names(base) if name.startswith(f"{LAYER}.")}
    assert _free(base, prefixes=[f"{LAYER}.self_attn"]) > _free(base, prefixes=[LAYER])


def test_a_pattern_is_searched_for(base):
    frozen = _names(base) - _free(base, regex=r"layers\.[01]\.mlp\.")
    assert frozen == {name for name in _names(base) if re.search(r"layers\.[01]\.mlp\.", name)} != set()


def test_a_share_is_counted_in_weights_from_the_bottom(base):
    sizes = {name: parameter.numel() for name, parameter in base.named_parameters()}
    frozen = _names(base) - _free(base, ratio=0.5)
    held, total = sum(sizes[name] for name in frozen), sum(sizes.values())
    assert held <= 0.5 * total and frozen == set(list(sizes)[: len(frozen)])
    assert held + list(sizes.values())[len(frozen)] > 0.5 * total
    assert bottom({"a": 10, "b": 10, "c": 20}, 0.5) == {"a", "b"}


def test_exceptions_win(base):
    free = _free(base, prefixes=["model.language_model"], trainable=[f"{LAYER}.mlp"])
    inside = {name for name in free if name.startswith("model.language_model.")}
    assert inside == {name for name in _names(base) if name.startswith(f"{LAYER}.mlp.")}


def test_adapters_follow_the_policy(make_tuned):
    model = make_tuned("tuner=lora", "freeze=prefix", f"freeze.prefixes=[{LAYER}]").model
    adapted = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted and not any(f"{LAYER}." in name for name in adapted)
    assert any("layers.1.mlp" in name for name in adapted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prefixes": ["model.layers.0"]},
            r"matches no parameter of the model; did you mean model\.language_model\.layers",
        ),
        ({"regex": "no_such_layer"}, r"freeze\.regex=no_such_layer: matches no parameter"),
        ({"regex": r"^model\.layers\.0\."}, r"did you mean \^model\\\.language_model"),
        ({"prefixes": ["model.language_model"], "frozen": ["llm"]}, "adds nothing to freeze.frozen"),
        ({"trainable": [LAYER]}, "frees nothing: nothing of it is frozen"),
        ({"ratio": 1e-9}, "is less than the first parameter"),
        ({"prefixes": ["model"], "regex": "lm_head|model"}, "freezes everything: nothing can train"),
    ],
    ids=["prefix", "regex", "regex of a text model", "no effect", "exception", "ratio", "everything"],
)
def test_what_names_nothing_or_changes_nothing_is_refused(base, fields, message):
    from harness.model.component import Component

    if "frozen" in fields:
        fields = fields | {"frozen": [Component[name] for name in fields["frozen"]]}
    with pytest.raises(UserError, match=message):
        _free(base, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "("}, r"freeze\.regex=\(: is no regular expression"),
        ({"regex": ""}, "matches everything; null for none"),
        ({"prefixes": ["layers.*"]}, r"freeze\.prefixes=.*names only"),
        ({"ratio": 1.5}, r"freeze\.ratio=1\.5: must be at least 0"),
        ({"ratio": 1.0}, r"freeze\.ratio=1\.0: freezes everything"),
    ],
)
def test_values_out_of_range_name_their_key(fields, message):
    with pytest.raises(UserError, match=message):
        ComponentFreezeConfig(**fields)
