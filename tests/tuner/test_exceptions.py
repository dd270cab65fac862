"""Exceptions of a freeze policy that an adapter does not follow are refused, and no others."""

import pytest

from harness import registry
from harness.errors import UserError
from harness.tuner.exceptions import check_exceptions

NORM = "freeze.trainable=[model.visual.blocks.0.norm1]"
MERGER = "freeze.trainable=[model.visual.merger]"
ATTENTION = "freeze.frozen=[llm,vit,aligner] freeze.trainable=[model.language_model.layers.1.self_attn.q_proj]"


@pytest.fixture
def check(make_config, load_model, outlook):
    def check(overrides):
        config = make_config(*overrides.split())
        loaded = load_model(config.model)
        policy = registry.build("freeze", config.freeze, loaded.model)
        check_exceptions(registry.build("tuner", config.tuner, loaded, policy, outlook), policy, config.tuner.name)

    return check


@pytest.mark.parametrize(
    "overrides",
    [
        f"tuner=lora {NORM}",
        f"tuner=vera {NORM}",
        f"tuner=adapter {NORM}",
        "tuner=lora freeze.trainable_regex=pos_embed",
        "tuner=lora tuner.target_modules=[q_proj] freeze.trainable=[model.visual.merger]",
    ],
)
def test_what_gets_no_adapter_is_refused(check, overrides):
    with pytest.raises(UserError, match=r"freeze\.trainable.*trains nothing of it"):
        check(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        f"tuner=full {NORM}",
        f"tuner=lora tuner.bias=all {NORM}",
        f"tuner=lora tuner.modules_to_save=[visual.blocks.0.norm1] {NORM}",
        f"tuner=lora {MERGER}",
        f"tuner=peft tuner.method=unilora {MERGER}",
        f"tuner=lora {ATTENTION}",
        f"tuner=adapter {ATTENTION}",
        f"tuner=boft {ATTENTION}",
        "tuner=longlora freeze.frozen=[llm,vit,aligner] freeze.trainable=[model.language_model]",
    ],
)
def test_what_trains_is_not(check, overrides):
    check(overrides)
