"""Compiled dropout drops what it should, keeps nothing for it, and drops the same in the backward pass."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from harness.memory.checkpointing import set_policy
from harness.tuner.drop import drop, kept

TOKENS, INPUTS = 1500, 2000


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_each_row_and_column_loses_its_share(rate):
    lost = ~kept(torch.empty(TOKENS, INPUTS), rate)
    assert lost.float().mean().item() == pytest.approx(rate, abs=4 * (rate / TOKENS / INPUTS) ** 0.5)
    for shares, drawn in ((lost.float().mean(0), TOKENS), (lost.float().mean(1), INPUTS)):
        assert shares.std().item() == pytest.approx((rate * (1 - rate) / drawn) ** 0.5, rel=0.1)


def test_rows_and_columns_are_independent():
    centred = kept(torch.empty(TOKENS, INPUTS), 0.5).float() - 0.5
    for values in (centred, centred.T):
        between = torch.corrcoef(values[:400]).fill_diagonal_(0)
        assert between.std().item() == pytest.approx(values.shape[1] ** -0.5, rel=0.05)
        assert between.abs().max() < 6 * values.shape[1] ** -0.5
    # Parity over the corners of rectangles, which numbers for rows and columns alone could give away.
    corners = centred[1:, 1:] * centred[:-1, 1:] * centred[1:, :-1] * centred[:-1, :-1]
    assert 16 * corners.mean().abs() < 4 * (TOKENS * INPUTS) ** -0.5


def test_each_call_draws_anew():
    x = torch.empty(64, 64)
    assert not torch.equal(kept(x, 0.5), kept(x, 0.5))


@pytest.mark.filterwarnings("ignore")  # torch's compilers use what torch calls out of date
@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", "inductor"])
def test_a_compiled_product_keeps_no_mask(backend):
    x, weight = torch.ones(512, 256, requires_grad=True), torch.rand(256, 8)
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = torch.compile(lambda x: (drop(x, 0.25) @ weight).sum(1), backend=backend, fullgraph=True)(x)
    assert sum(tensor.nbytes for tensor in saved) <= 4 * (512 + 256) + weight.nbytes
    out.sum().backward()
    torch.testing.assert_close((x.grad * x).sum(1), out.detach(), rtol=1e-4, atol=1e-4)
    assert (x.grad == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    kept_values = x.grad[x.grad != 0].reshape(-1)
    assert kept_values.max() <= weight.sum(1).max() / 0.75 + 1e-4


def test_rate_zero_is_the_input():
    x = torch.rand(3, 3)
    assert drop(x, 0.0) is x


@pytest.mark.filterwarnings("ignore")
def test_a_selective_layer_compiles_with_it():
    layer = torch.nn.Sequential(torch.nn.Linear(32, 4), torch.nn.Linear(4, 32))
    plain = layer.forward
    layer.forward = lambda x: plain(drop(x, 0.5)) + x
    set_policy(layer, "selective")
    x = torch.randn(64, 32, requires_grad=True)
    out = torch.compile(layer, backend="aot_eager_decomp_partition", fullgraph=True)(x)
    out.sum().backward()
    share = ((x.grad - 1).abs() < 1e-7).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)
