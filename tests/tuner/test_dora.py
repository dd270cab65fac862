import pytest
import torch

from harness.errors import UserError
from harness.tuner.dora import DoraConfig


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
