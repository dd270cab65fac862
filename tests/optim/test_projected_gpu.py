"""Projected gradients on a GPU: a step between two projections never waits for it, states resume, memory is freed."""

import copy

import pytest
import torch

from harness.optim import apollo, galore, q_galore

pytestmark = pytest.mark.gpu

CHOICES = [
    pytest.param(galore.build, galore.GaloreConfig, {}, id="galore"),
    pytest.param(q_galore.build, q_galore.QGaloreConfig, {"proj_quant": True}, id="q_galore"),
    pytest.param(q_galore.build, q_galore.QGaloreConfig, {"quantize_state": False}, id="q_galore_32_bits"),
    pytest.param(apollo.build, apollo.ApolloConfig, {}, id="apollo"),
]
SHAPES = [(256, 768), (768, 256), (512, 512)]


def make(build, kind, settings, dtype, weights=None):
    torch.manual_seed(0)
    weights = weights or [torch.nn.Parameter(torch.randn(shape, device="cuda").to(dtype)) for shape in SHAPES]
    named = [(f"model.language_model.layers.{i}.mlp.up_proj.weight", weight) for i, weight in enumerate(weights)]
    group = {"params": named, "lr": 1e-3, "weight_decay": 0.1, "name": "llm"}
    return weights, build(kind(rank=16, update_proj_gap=3, **settings), [group])


def step(weights, optimizer, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator, device="cuda").to(weight.dtype)
    optimizer.step()


@pytest.mark.parametrize(("build", "kind", "settings"), CHOICES)
def test_a_step_between_projections_never_waits_for_the_gpu(build, kind, settings, no_waits):
    weights, optimizer = make(build, kind, settings, torch.float32)
    step(weights, optimizer, 0)
    with no_waits():
        step(weights, optimizer, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("build", "kind", "settings"), CHOICES)
def test_a_loaded_state_goes_on_bit_for_bit(build, kind, settings, dtype):
    weights, optimizer = make(build, kind, settings, dtype)
    for seed in range(4):
        step(weights, optimizer, seed)
    others, resumed = make(build, kind, settings, dtype, copy.deepcopy(weights))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(4, 8):
        step(weights, optimizer, seed)
        step(others, resumed, seed)
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))
    assert all(weight.isfinite().all() for weight in weights)


def test_gradients_are_freed_within_the_backward_pass():
    """Ten weights in a row: the peak holds the gradients of all of them, or of hardly more than one."""

    def peak(**settings):
        weights = [torch.nn.Parameter(torch.randn(1024, 1024, device="cuda") / 32) for _ in range(10)]
        named = [(f"model.language_model.layers.{i}.mlp.up_proj.weight", weight) for i, weight in enumerate(weights)]
        config = galore.GaloreConfig(rank=8, max_grad_norm=None, **settings)
        optimizer = galore.build(config, [{"params": named, "lr": 1e-3, "weight_decay": 0.0, "name": "llm"}])
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            hidden = torch.ones(1, 1024, device="cuda")
            for weight in weights:
                hidden = hidden @ weight
            hidden.sum().backward()
            held = torch.cuda.memory_allocated() - before
            optimizer.step()
            optimizer.zero_grad()
        return held / 2**20

    assert peak() > 39 and peak(per_parameter=True) < 1
