import dataclasses

import pytest
import torch

from harness.errors import UserError
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.start.calibration import mean_gradients
from harness.tuner.start.config import Direction, Scale

GA = ("tuner.init=lora_ga", "tuner.dropout=0")
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj"


@pytest.fixture
def gradients(make_tuned, outlook):
    """Full fine-tuning's gradients on the samples that LoRA-GA looks at."""
    base = make_tuned("tuner=full").base.requires_grad_(False)
    names = [name for name, module in base.model.language_model.named_modules() if isinstance(module, torch.nn.Linear)]
    return mean_gradients(base, [f"model.language_model.{name}" for name in names], outlook, (2, 2, 1024))


def first_steps(tuned, outlook):
    """Returns by layer how a small step of gradient descent on A and B moves s B A, over the step's size."""
    batches = list(outlook.batches(2, 2, None))
    for batch in batches:
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised / len(batches)).backward()
    steps = {}
    for name, layer in tuned.base.named_modules():
        if hasattr(layer, "lora_A"):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            steps[name] = layer.scaling["default"] * (B.grad @ A + B @ A.grad).detach()
    return steps


def cosine(left, right):
    return torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0)


def test_gradients_are_those_of_full_fine_tuning(make_tuned, outlook, gradients):
    tuned = make_tuned("tuner=full", "freeze=vit_aligner")
    batches = list(outlook.batches(2, 2, None))
    for batch in batches:
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised / len(batches)).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, tuned.base.get_submodule(name).weight.grad, atol=1e-6, rtol=1e-4)


def test_the_model_is_left_as_it_was(make_tuned, outlook):
    base = make_tuned("tuner=full").base.requires_grad_(False)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    mean_gradients(base, [Q_PROJ], outlook, (1, 2, None))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    weight = base.get_submodule(Q_PROJ).weight
    assert not weight.requires_grad and weight.grad is None and not weight._post_accumulate_grad_hooks


def test_the_first_step_goes_along_the_gradient_of_full_fine_tuning(make_tuned, outlook, gradients):
    """Section 3.2 of arXiv 2407.05000: it is the best approximation of G of rank 2 r, default LoRA's a random one."""
    steps = first_steps(make_tuned(*GA), outlook)
    outlook.start_file.unlink()
    default = first_steps(make_tuned("tuner.dropout=0"), outlook)
    best = {name: torch.linalg.svdvals(g)[:16].norm() / g.norm() for name, g in gradients.items()}
    ours = {name: cosine(steps[name], g) for name, g in gradients.items()}
    theirs = {name: cosine(default[name], g) for name, g in gradients.items()}
    for name, reached in ours.items():
        assert reached > best[name] - 0.02 and reached > theirs[name], name
    means = [sum(found.values()) / len(found) for found in (ours, theirs)]
    assert means[0] > 0.9 and means[0] > 1.5 * means[1], means


@pytest.mark.parametrize("direction", Direction)
def test_a_and_b_hold_different_singular_vectors_of_the_gradient(make_tuned, gradients, direction):
    tuned = make_tuned(*GA, f"tuner.lora_ga.direction={direction.name}", "tuner.lora_ga.scale=unit", "tuner.rank=2")
    layer = tuned.base.get_submodule(Q_PROJ)
    U, _, Vh = torch.linalg.svd(gradients[Q_PROJ], full_matrices=False)
    of_A = (layer.lora_A["default"].weight @ Vh[:4].T).abs().argmax(1).tolist()
    of_B = (layer.lora_B["default"].weight.T @ U[:, :4]).abs().argmax(1).tolist()
    assert sorted(of_A + of_B) == [0, 1, 2, 3]
    expected = {
        Direction.ArBr: ([1, 3], [0, 2]),
        Direction.A2rBr: ([2, 3], [0, 1]),
        Direction.ArB2r: ([0, 1], [2, 3]),
    }
    assert (of_A, of_B) == expected.get(direction, (of_A, of_B))


@pytest.mark.parametrize("scale", Scale)
def test_scales(start_of, scale):
    """Norms of A's rows: `stable` is d_out^(1/4) / sqrt(gamma) (algorithm 1), the others as the authors' code."""
    weight, layer = start_of(Q_PROJ.removeprefix("model."), *GA, f"tuner.lora_ga.scale={scale.name}")
    values = torch.linalg.svdvals(weight)[:8] / 4
    expected = {
        Scale.gd: 8 / 32,
        Scale.unit: 1.0,
        Scale.stable: 128**0.25 / 16**0.5,
        Scale.weightS: values.sqrt().mean().item(),
    }
    for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight.T):
        torch.testing.assert_close(matrix.norm(dim=1), torch.full((8,), expected[scale]), atol=2e-2, rtol=2e-2)


def test_a_rank_needs_twice_as_many_singular_vectors(make_tuned):
    with pytest.raises(UserError, match=r"tuner\.rank=33: lora_ga needs twice as many singular vectors, and .* has 64"):
        make_tuned(*GA, "tuner.rank=33")


def test_layers_that_no_sample_reaches_are_refused(make_tuned, outlook, make_batch):
    blind = make_batch(0, 1)
    blind.pixel_values = blind.grid_thw = None
    text = dataclasses.replace(outlook, batches=lambda *_: iter([blind]))
    with pytest.raises(UserError, match=r"tuner\.init: the samples it starts from reach 24 of the layers not at all"):
        make_tuned(*GA, "freeze=none", outlook=text)
