import pytest
import torch

from harness.errors import UserError
from harness.tuner.dora import DoraConfig

LAYER = "model.language_model.layers.1.mlp.up_proj"


def test_magnitude_starts_as_the_norm_of_each_output(make_tuned):
    """m = ||W|| over the inputs, so that the start is W itself (arXiv 2402.09353, section 4.1)."""
    weight = make_tuned("tuner=full").base.model.language_model.layers[1].mlp.up_proj.weight
    layer = make_tuned("tuner=dora").base.model.language_model.layers[1].mlp.up_proj
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, torch.linalg.norm(weight, dim=1))


def test_trains_one_magnitude_per_output_more_than_lora(make_tuned):
    def count(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    dora, lora = make_tuned("tuner=dora").model, make_tuned("tuner=lora").model
    outputs = sum(m.out_features for m in lora.modules() if hasattr(m, "lora_A"))
    assert count(dora) - count(lora) == outputs


def test_values_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"tuner\.rank=-1"):
        DoraConfig(rank=-1)


def test_lora_plus_trains_b_faster_but_not_the_magnitude(make_tuned):
    tuned = make_tuned("tuner=dora", "tuner.lora_plus_ratio=8")
    assert set(tuned.lr_scales.values()) == {8}
    assert tuned.lr_scales.keys() == {name for name in tuned.adapter if ".lora_B." in name}


def test_rslora_scales_by_the_root_of_the_rank(make_tuned):
    layer = make_tuned("tuner=dora", "tuner.rslora=true", "tuner.rank=16", "tuner.alpha=8").base.get_submodule(LAYER)
    assert layer.use_dora["default"] and layer.scaling["default"] == 2


def test_biases_train_beside(make_tuned):
    model = make_tuned("tuner=dora", "tuner.bias=all", "freeze=aligner").model
    biases = [p.requires_grad for name, p in model.named_parameters() if ".visual.blocks." in name and "bias" in name]
    assert biases and all(biases)
    with pytest.raises(UserError, match=r"tuner\.bias=all: .* has no biases"):
        make_tuned("tuner=dora", "tuner.bias=all")


def test_layers_and_ranks_are_chosen_as_for_lora(make_tuned):
    tuned = make_tuned("tuner=dora", "tuner.layers_to_transform=[1]", "tuner.rank_pattern={q_proj: 2}")
    assert all(".language_model.layers.1." in name for name in tuned.adapter)
    assert tuned.base.model.language_model.layers[1].self_attn.q_proj.r["default"] == 2
    with pytest.raises(UserError, match=r"tuner\.rank=65: is larger than the layer .*k_proj: at most 64"):
        make_tuned("tuner=dora", "tuner.rank=65")
