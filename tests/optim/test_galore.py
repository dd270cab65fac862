import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from harness import registry
from harness.optim.galore import GaloreConfig, ProjectionType
from harness.optim.galore import build as build_galore

M, N, RANK = 8, 20, 3
NAME = "model.language_model.layers.0.mlp.up_proj.weight"


class Model(nn.Module):
    """A target, a matrix that is none, and a vector."""

    def __init__(self, rows=M, columns=N, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.target = nn.Parameter(torch.randn(rows, columns, dtype=dtype))
        self.embedding = nn.Parameter(torch.randn(rows, rows, dtype=dtype))
        self.norm = nn.Parameter(torch.randn(columns, dtype=dtype))

    def groups(self, lr=1e-2):
        named = [(NAME, self.target), ("model.language_model.embed_tokens.weight", self.embedding)]
        return [
            {"params": named, "lr": lr, "weight_decay": 0.1, "name": "llm"},
            {"params": [("model.language_model.norm.weight", self.norm)], "lr": lr, "weight_decay": 0.0, "name": "n"},
        ]

    def fill(self, seed, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = (gradient * scale).to(parameter.dtype)


def make(model, **settings):
    return build_galore(GaloreConfig(**{"rank": RANK, **settings}), model.groups())


def adamw(model):
    groups = [{**group, "params": [p for _, p in group["params"]]} for group in model.groups()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


@pytest.mark.parametrize(
    ("kind", "shape", "bases", "moments"),
    [
        ("std", (M, N), {"left": (M, RANK)}, (RANK, N)),
        ("std", (N, M), {"right": (M, RANK)}, (N, RANK)),
        ("reverse_std", (M, N), {"right": (N, RANK)}, (M, RANK)),
        ("reverse_std", (N, M), {"left": (N, RANK)}, (RANK, M)),
        ("right", (M, N), {"right": (N, RANK)}, (M, RANK)),
        ("left", (N, M), {"left": (N, RANK)}, (RANK, M)),
        ("full", (M, N), {"left": (M, RANK), "right": (N, RANK)}, (RANK, RANK)),
    ],
)
def test_state_has_the_shapes_of_the_projection(kind, shape, bases, moments):
    model = Model(*shape)
    optimizer = make(model, proj_type=ProjectionType(kind))
    model.fill(0)
    optimizer.step()
    state = optimizer.state[model.target]
    assert {side: tuple(state[side].shape) for side in ("left", "right") if side in state} == bases
    assert tuple(state["exp_avg"].shape) == tuple(state["exp_avg_sq"].shape) == moments


def test_state_is_as_small_as_table_1_of_the_paper_says():
    """m r + 2 n r numbers in place of AdamW's 2 m n, beside the counts of steps."""
    model = Model()
    optimizers = make(model), adamw(model)
    model.fill(0)
    sizes = []
    for optimizer in optimizers:
        optimizer.step()
        state = optimizer.state[model.target]
        sizes.append(sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor)) - 1)
    assert sizes == [M * RANK + 2 * N * RANK, 2 * M * N]


def test_updates_follow_algorithm_2_of_the_paper():
    model, weight = Model(), Model().target.detach().clone()
    optimizer = make(model, update_proj_gap=4, scale=0.5)
    m, v = torch.zeros(RANK, N, dtype=torch.float64), torch.zeros(RANK, N, dtype=torch.float64)
    for step in range(1, 10):
        model.fill(step)
        gradient = model.target.grad.clone()
        optimizer.step()
        if (step - 1) % 4 == 0:
            basis = torch.linalg.svd(gradient)[0][:, :RANK]
            # The sign of a singular vector is arbitrary, and old moments meet the new one as it comes.
            basis = basis * (basis * optimizer.state[model.target]["left"]).sum(0).sign()
        low = basis.T @ gradient
        m, v = 0.9 * m + 0.1 * low, 0.95 * v + 0.05 * low**2
        normal = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
        weight = weight - 1e-2 * 0.1 * weight - 1e-2 * 0.5 * basis @ normal
        torch.testing.assert_close(model.target.detach(), weight, rtol=1e-9, atol=1e-9)


def test_with_the_identity_as_projection_it_is_adamw(monkeypatch):
    monkeypatch.setattr(
        "harness.optim.galore_rule.singular_bases", lambda gradient, rank, sides: {"left": torch.eye(M).to(gradient)}
    )
    ours, theirs = Model(), Model()
    optimizers = make(ours, rank=M), adamw(theirs)
    for seed in range(6):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model.fill(seed)
            optimizer.step()
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_at_full_rank_it_is_adam_in_rotated_coordinates():
    """U^T W moves as AdamW moves it by the gradient U^T G."""
    ours, theirs = Model(), Model()
    first = make(ours, rank=M, update_proj_gap=100)
    second = None
    for seed in range(6):
        ours.fill(seed)
        gradient = ours.target.grad.clone()
        first.step()
        rotation = first.state[ours.target]["left"]
        if second is None:
            theirs.target.data = rotation.T @ theirs.target.data
            second = adamw(theirs)
        theirs.target.grad = rotation.T @ gradient
        second.step()
    torch.testing.assert_close(rotation @ theirs.target, ours.target, rtol=1e-9, atol=1e-9)


def test_what_is_no_target_trains_by_adamw_bit_for_bit():
    ours, theirs = Model(dtype=torch.float32), Model(dtype=torch.float32)
    for model, optimizer in ((ours, make(ours)), (theirs, adamw(theirs))):
        for seed in range(4):
            model.fill(seed)
            optimizer.step()
    assert torch.equal(ours.embedding, theirs.embedding) and torch.equal(ours.norm, theirs.norm)


def test_the_projection_is_renewed_at_each_interval_and_not_between():
    model = Model()
    optimizer = make(model, update_proj_gap=3)
    bases = []
    for seed in range(7):
        model.fill(seed)
        optimizer.step()
        bases.append(optimizer.state[model.target]["left"].clone())
    changed = [not torch.equal(*pair) for pair in pairwise(bases)]
    assert changed == [False, False, True, False, False, True]


def test_the_rate_of_the_step_is_that_of_the_group_so_warm_up_holds():
    model = Model()
    optimizer = make(model)
    optimizer.param_groups[0]["lr"] = 0.0
    before = model.target.detach().clone()
    model.fill(0)
    optimizer.step()
    assert torch.equal(model.target, before)
    optimizer.param_groups[0]["lr"] = 1e-2
    optimizer.step()
    assert not torch.equal(model.target, before)


def test_a_parameter_without_gradient_stays_and_has_no_state():
    model = Model()
    optimizer = make(model)
    model.fill(0)
    model.target.grad = None
    before = model.target.detach().clone()
    optimizer.step()
    assert torch.equal(model.target, before) and not optimizer.state[model.target]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_loaded_within_an_interval_goes_on_bit_for_bit(dtype):
    model = Model(dtype=dtype)
    optimizer = make(model, update_proj_gap=4)
    for seed in range(6):
        model.fill(seed)
        optimizer.step()
    other, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    resumed = make(other, update_proj_gap=4)
    resumed.load_state_dict(state)
    for seed in range(6, 10):
        for each, its in ((model, optimizer), (other, resumed)):
            each.fill(seed)
            its.step()
    for got, want in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_it_is_registered():
    entry = registry.get("optim", "galore")
    assert (entry.config, entry.build) == (GaloreConfig, build_galore)
    assert GaloreConfig.full_only
