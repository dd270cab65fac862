import pytest
import torch

from harness.errors import UserError
from harness.trainer.gradient_check import GradientCheck


@pytest.fixture
def model(make_tuned):
    return make_tuned("tuner=full", "freeze=none").model


def fill(model, prefix, value):
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            parameter.grad = torch.full_like(parameter, value)


def test_a_component_without_gradient_stops_the_run(model):
    fill(model, "model.language_model", 1.0)
    fill(model, "model.visual.blocks", 1.0)
    fill(model, "model.visual.merger", 0.0)
    with pytest.raises(UserError, match="aligner: marked as trainable, but the first step gave it no gradient"):
        GradientCheck(model).check(step_has_images=True)


def test_text_alone_proves_nothing_about_the_vision_side(model):
    check = GradientCheck(model)
    fill(model, "model.language_model", 1.0)
    check.check(step_has_images=False)
    with pytest.raises(UserError, match="vit"):
        check.check(step_has_images=True)


def test_looks_once(model):
    check = GradientCheck(model)
    fill(model, "model.", 1.0)
    check.check(step_has_images=True)
    model.zero_grad()
    check.check(step_has_images=True)
