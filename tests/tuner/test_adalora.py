import json
import math

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.adalora import AdaloraConfig
from harness.tuner.rank_allocation import orthogonality

RANKS = (
    "tuner=adalora",
    "tuner.target_r=2",
    "tuner.init_r=4",
    "tuner.dropout=0",
    "tuner.target_modules=[q_proj,down_proj]",
)
NUM_LAYERS = 4 * 2


def factors(tuned, leaf):
    return [p for name, p in tuned.model.named_parameters() if f".lora_{leaf}." in name]


def train(tuned, batch, steps, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2)
    for step in steps:
        optimizer.zero_grad()
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised + tuned.regularizer()).backward()
        optimizer.step()
        tuned.after_step(step)
    return optimizer


def ranks(tuned):
    return [int((entries != 0).sum()) for entries in factors(tuned, "E")]


def test_trainable_count_is_that_of_the_paper(make_tuned):
    """init_r x (inputs + outputs + 1): P, Q and the diagonal (arXiv 2303.10512, equation 3)."""
    linears = make_tuned("tuner=full").base.model.language_model.layers.modules()
    expected = sum(12 * (m.in_features + m.out_features + 1) for m in linears if isinstance(m, torch.nn.Linear))
    assert sum(p.numel() for p in make_tuned("tuner=adalora").model.parameters() if p.requires_grad) == expected


def test_ranks_follow_the_cubic_schedule_and_end_at_the_budget(make_tuned, make_batch):
    """b(t) = target + (init - target) (1 - (t - tinit) / (T - tinit - tfinal))^3 over all layers (equation 12)."""
    tuned, batch = make_tuned(*RANKS, "tuner.tinit=2", "tuner.tfinal=4"), make_batch(0, 1)
    first, last = 4 * NUM_LAYERS, 2 * NUM_LAYERS
    optimizer = train(tuned, batch, [1, 2])
    assert sum(ranks(tuned)) == first
    for step in range(3, 21):
        train(tuned, batch, [step], optimizer)
        left = max(0.0, 1 - (step - 2) / (20 - 2 - 4))
        assert sum(ranks(tuned)) == math.floor(last + (first - last) * left**3)
    assert len(set(ranks(tuned))) > 1


def test_export_has_the_ranks_dealt_out_and_loads_to_equal_logits(make_tuned, make_batch, tmp_path):
    tuned, batch = make_tuned(*RANKS), make_batch(0)
    train(tuned, batch, range(1, 21))
    entries = factors(tuned, "E")
    with torch.no_grad():
        # A layer that gets no rank at all.
        entries[0].zero_()
    folder = tuned.export(tmp_path)
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert sorted(sum(mask) for mask in pattern.values()) == sorted(ranks(tuned)) and min(ranks(tuned)) == 0
    checkpoint = registry._PACKAGE / "model" / "tiny_checkpoint"
    plain = PeftModel.from_pretrained(Qwen3VLForConditionalGeneration.from_pretrained(checkpoint), folder)
    tuned.model.eval(), plain.eval()
    with torch.no_grad():
        expected = supervised_logits(tuned.base, batch)
        torch.testing.assert_close(supervised_logits(plain.base_model.model, batch), expected, atol=1e-4, rtol=1e-4)


def test_export_keeps_what_grew_back_between_two_allocations(make_tuned, make_batch, tmp_path):
    tuned, batch = make_tuned(*RANKS, "tuner.delta_t=4"), make_batch(0, 1)
    train(tuned, batch, range(1, 6))
    masked = sum(sum(mask) for mask in tuned.model.peft_config["default"].rank_pattern.values())
    assert sum(ranks(tuned)) > masked > 0
    pattern = json.loads((tuned.export(tmp_path) / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(sum(mask) for mask in pattern.values()) == sum(ranks(tuned))


def test_regularizer_is_zero_for_orthonormal_factors_only(make_tuned):
    tuned = make_tuned(*RANKS)
    start = tuned.regularizer()
    assert start > 0.5
    for name, factor in tuned.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            torch.nn.init.orthogonal_(factor)
    assert tuned.regularizer().item() == pytest.approx(0, abs=1e-5)
    factors(tuned, "A")[0].data[0] *= 2
    # One row of length 2: |2^2 - 1| off the identity, averaged over all P and Q.
    assert orthogonality(tuned.model).item() == pytest.approx(3 / (2 * NUM_LAYERS), rel=1e-3)
    assert tuned.regularizer().item() == pytest.approx(0.5 * 3 / (2 * NUM_LAYERS), rel=1e-3)


def test_regularizer_is_exact_under_autocast(make_tuned):
    tuned = make_tuned(*RANKS)
    exact = tuned.regularizer()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tuned.regularizer(), exact)


def test_no_regularizer_at_weight_zero(make_tuned):
    assert make_tuned(*RANKS, "tuner.orth_reg_weight=0").regularizer is None


def test_a_resume_goes_on_bit_by_bit(make_tuned, make_batch, tmp_path):
    """State goes through a file that torch reads with `weights_only`."""
    whole, batch = make_tuned(*RANKS), make_batch(0)
    optimizer = train(whole, batch, range(1, 9))
    file = tmp_path / "state.pt"
    torch.save([whole.state(), whole.model.state_dict(), optimizer.state_dict()], file)
    train(whole, batch, range(9, 21), optimizer)

    resumed = make_tuned(*RANKS)
    state, weights, optimizer_state = torch.load(file, weights_only=True)
    resumed.load_state(state)
    resumed.model.load_state_dict(weights)
    optimizer = torch.optim.AdamW([p for p in resumed.model.parameters() if p.requires_grad], lr=1e-2)
    optimizer.load_state_dict(optimizer_state)
    train(resumed, batch, range(9, 21), optimizer)
    for (name, expected), found in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert resumed.state()["rank_pattern"] == whole.state()["rank_pattern"] != {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 12}, r"tuner\.target_r=12: must be less than tuner\.init_r=12"),
        ({"target_r": 0}, r"tuner\.target_r=0: must be 1 or more"),
        ({"tinit": -1}, r"tuner\.tinit=-1: must be 0 or more"),
        ({"tfinal": -1}, r"tuner\.tfinal=-1: must be 0 or more"),
        ({"delta_t": 0}, r"tuner\.delta_t=0: must be 1 or more"),
        ({"beta1": 1.0}, r"tuner\.beta1=1\.0: must be more than 0 and less than 1"),
        ({"beta2": 0.0}, r"tuner\.beta2=0\.0: must be more than 0 and less than 1"),
        ({"orth_reg_weight": -0.1}, r"tuner\.orth_reg_weight=-0\.1: must be 0 or more"),
        ({"alpha": 0.0}, r"tuner\.alpha=0\.0: must be more than 0"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AdaloraConfig(**options)


def test_a_schedule_without_a_step_to_allocate_in_is_refused(make_tuned):
    with pytest.raises(
        UserError, match=r"tuner\.tinit=15: with tuner\.tfinal=5 leaves none of the run's 20 steps to .*; lower"
    ):
        make_tuned("tuner=adalora", "tuner.tinit=15", "tuner.tfinal=5")


def test_a_rank_above_a_layer_s_is_refused(make_tuned):
    with pytest.raises(UserError, match=r"tuner\.init_r=65: is more than the 64 that .*k_proj can have"):
        make_tuned("tuner=adalora", "tuner.init_r=65")
