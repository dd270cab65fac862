import pytest

from harness.errors import UserError
from harness.model.component import Component, component_of


def test_every_parameter_of_the_model_has_a_component(make_tuned):
    counts = dict.fromkeys(Component, 0)
    for name, parameter in make_tuned("tuner=full").model.named_parameters():
        counts[component_of(name)] += parameter.numel()
    assert all(counts.values())


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.visual.deepstack_merger_list.2.linear_fc1.weight", Component.aligner),
        ("model.visual.merger.norm.bias", Component.aligner),
        ("model.visual.blocks.3.attn.qkv.weight", Component.vit),
        ("model.visual.pos_embed.weight", Component.vit),
        ("lm_head.weight", Component.llm),
        ("base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.default.weight", Component.llm),
    ],
)
def test_deepstack_mergers_belong_to_the_aligner(name, component):
    assert component_of(name) is component


def test_a_parameter_of_another_model_is_refused():
    with pytest.raises(UserError, match="belongs to none of llm, aligner, vit"):
        component_of("transformer.h.0.attn.weight")
