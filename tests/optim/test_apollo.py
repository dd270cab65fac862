import copy
from itertools import pairwise

import pytest
import torch

from harness import registry
from harness.errors import UserError
from harness.optim.apollo import ApolloConfig, ScaleType
from harness.optim.apollo import build as build_apollo

M, N, RANK, LR = 8, 20, 3, 1e-2
NAME = "model.language_model.layers.0.mlp.up_proj.weight"


def make(shape=(M, N), weight=None, decay=0.0, **settings):
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(shape)) if weight is None else weight
    config = ApolloConfig(**{"rank": RANK, "norm_growth": None, **settings})
    return weight, build_apollo(config, [{"params": [(NAME, weight)], "lr": LR, "weight_decay": decay, "name": "llm"}])


def noise(seed, shape=(M, N)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def updates(weight, optimizer, gradients):
    """Returns what each step subtracted, in units of the learning rate."""
    taken = []
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        taken.append((before - weight.detach()) / LR)
    return taken


def adam_directions(gradients):
    m = v = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        yield (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)


@pytest.mark.parametrize("shape", [(M, N), (N, M)])
def test_with_the_identity_as_projection_channels_are_scaled_as_adam_scales_them(monkeypatch, shape):
    """The paper's structured Adam: each channel of the gradient at the length of Adam's step in it."""
    monkeypatch.setattr(
        "harness.optim.apollo_rule.random_basis", lambda gradient, rank, side, seed: {side: torch.eye(rank)}
    )
    gradients = [noise(seed, shape) for seed in range(5)]
    short = shape.index(M)
    taken = updates(*make(shape, rank=M), gradients)
    for got, gradient, adam in zip(taken, gradients, adam_directions(gradients), strict=True):
        want = gradient * adam.norm(dim=short, keepdim=True) / gradient.norm(dim=short, keepdim=True)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_random_projection_of_high_rank_comes_near_adams_scaling():
    """The paper's theorem: the factor is right up to sqrt(r / m), within the spread of random lengths."""
    shape, rank = (256, 400), 128
    gradients = [noise(seed, shape) * torch.linspace(0.1, 3, 400) for seed in range(4)]
    got = updates(*make(shape, rank=rank), gradients)[-1]
    want = list(adam_directions(gradients))[-1]
    factor = got.norm(dim=0) / want.norm(dim=0) / (rank / 256) ** 0.5
    assert factor.mean() == pytest.approx(1.0, abs=0.1) and factor.std() < 0.2


def test_one_factor_scales_the_whole_matrix():
    gradients = [noise(seed) for seed in range(3)]
    for got, gradient in zip(updates(*make(rank=1, scale_type=ScaleType.tensor), gradients), gradients, strict=True):
        factor = (got * gradient).sum() / gradient.square().sum()
        torch.testing.assert_close(got, factor * gradient, rtol=1e-3, atol=1e-3)


def test_scale_multiplies_the_update_and_decay_is_apart():
    gradients = [noise(0)]
    (plain,), (double,) = (updates(*make(scale=scale), gradients) for scale in (1.0, 2.0))
    torch.testing.assert_close(double, 2 * plain, rtol=1e-3, atol=1e-4)
    weight, optimizer = make(decay=0.5)
    start = weight.detach().clone()
    (decayed,) = updates(weight, optimizer, gradients)
    torch.testing.assert_close(decayed - plain, 0.5 * start, rtol=1e-3, atol=1e-3)


def test_the_norm_of_the_update_grows_no_faster_than_its_limit():
    gradients = [noise(seed) * 2.0**seed for seed in range(6)]
    norms = [step.norm().item() for step in updates(*make(norm_growth=1.01), gradients)]
    free = [step.norm().item() for step in updates(*make(), gradients)]
    ratios = [later / earlier for earlier, later in pairwise(norms)]
    assert max(ratios) < 1.0101 and norms[0] == pytest.approx(free[0]) and free[-1] > 1.1 * norms[-1]


def test_a_step_without_gradient_sets_no_limit():
    zero, later = torch.zeros(M, N), noise(1)
    first, second = updates(*make(norm_growth=1.01), [zero, later])
    assert not first.any() and second.norm() > 0.1 and second.isfinite().all()


@pytest.mark.parametrize(("shape", "moments"), [((M, N), (RANK, N)), ((N, M), (N, RANK))])
def test_state_is_as_small_as_the_paper_says(shape, moments):
    """2 n r + 2 numbers: two moments, a norm and a seed; no projection."""
    weight, optimizer = make(shape, norm_growth=1.01)
    updates(weight, optimizer, [noise(0, shape)])
    state = optimizer.state[weight]
    assert tuple(state["exp_avg"].shape) == tuple(state["exp_avg_sq"].shape) == moments
    assert set(state) == {"age", "seed", "step", "exp_avg", "exp_avg_sq", "norm"}
    assert isinstance(state["seed"], int) and state["norm"].numel() == 1


def test_the_projection_changes_with_the_interval_the_seed_and_the_name():
    def seeds(**settings):
        weight, optimizer = make(update_proj_gap=2, **settings)
        seen = []
        for step in range(5):
            updates(weight, optimizer, [noise(step)])
            seen.append(optimizer.state[weight]["seed"])
        return seen

    ours, others = seeds(proj_seed=1), seeds(proj_seed=2)
    assert ours[0] == ours[1] != ours[2] == ours[3] != ours[4]
    assert set(ours).isdisjoint(others) and ours == seeds(proj_seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_loaded_within_an_interval_goes_on_bit_for_bit(dtype):
    settings = {"norm_growth": 1.01, "update_proj_gap": 3, "decay": 0.1}
    weight, optimizer = make(weight=torch.nn.Parameter(noise(9).to(dtype)), **settings)
    updates(weight, optimizer, [noise(seed).to(dtype) for seed in range(4)])
    other, resumed = make(weight=copy.deepcopy(weight), **settings)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.rand(5)
    for pair in ((weight, optimizer), (other, resumed)):
        updates(*pair, [noise(seed).to(dtype) for seed in range(4, 9)])
    assert torch.equal(weight, other)


def test_the_seed_of_the_projections_is_that_of_the_run(make_config):
    assert make_config("tuner=full", "optim=apollo", "seed=7").optim.proj_seed == 7
    mini = make_config("tuner=full", "optim=apollo_mini", "seed=7").optim
    assert (mini.proj_seed, mini.rank, mini.scale_type) == (7, 1, ScaleType.tensor)
    assert mini.scale == pytest.approx(128**0.5, rel=1e-4)


@pytest.mark.parametrize("growth", [1.0, 0.5, float("inf")])
def test_a_limit_that_is_none_is_refused(growth):
    with pytest.raises(UserError, match=r"optim\.norm_growth=.*: must be above 1, or null"):
        ApolloConfig(norm_growth=growth)


def test_it_is_registered():
    entry = registry.get("optim", "apollo")
    assert (entry.config, entry.build) == (ApolloConfig, build_apollo)
    assert ApolloConfig.full_only
