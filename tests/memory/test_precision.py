import pytest
import torch

from harness.errors import UserError
from harness.memory.outline import outline
from harness.memory.precision import checked_precision


def precision(make_config, model, *overrides):
    config = make_config("trainer.accelerator=cpu", *overrides)
    return checked_precision(config.memory, model, config.trainer)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "fp32"),
        (["model.dtype=bfloat16"], "bf16"),
        (["model.dtype=bfloat16", "tuner=full"], "bf16"),
        (["model.dtype=bfloat16", "tuner=full", "freeze=none"], "bf16"),
        (["tuner=full", "freeze=none"], "fp32"),
        (["memory.precision=bf16"], "bf16"),
    ],
)
def test_follows_the_base_weights_unless_asked(make_config, make_tuned, overrides, expected):
    assert precision(make_config, make_tuned(*overrides).model, *overrides) == expected


def test_is_predicted_as_it_will_be(make_config):
    overrides = ("model.dtype=bfloat16", "tuner=full", "freeze=none")
    assert precision(make_config, outline(make_config(*overrides)).base, *overrides) == "bf16"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.dtype=bfloat16", "memory.precision=fp32"], r"memory\.precision=fp32: the weights are torch\.bfloat16"),
        (["model.dtype=bfloat16", "memory.precision=fp32", "tuner=full", "freeze=none"], "set model.dtype=float32"),
        (["memory.precision=fp16"], r"memory\.precision=fp16: needs a GPU"),
    ],
)
def test_what_does_not_fit_is_refused(make_config, make_tuned, overrides, message):
    with pytest.raises(UserError, match=message):
        precision(make_config, make_tuned(*overrides).model, *overrides)


def test_a_gradient_scaler_needs_trained_weights_in_float32(make_config, make_tuned, monkeypatch):
    monkeypatch.setattr("harness.memory.precision.pick_accelerator", lambda config: "gpu")
    overrides = ["model.dtype=float16", "tuner.dtype=bfloat16"]
    with pytest.raises(UserError, match=r"trained weights in float32: tuner\.dtype"):
        precision(make_config, make_tuned(*overrides).model, *overrides)


def test_trained_weights_are_float32_by_default(make_tuned):
    model = make_tuned("tuner=full", "model.dtype=bfloat16").model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
