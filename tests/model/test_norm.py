"""The norm of steps on the CPU against the stock one: the result to the bit, every gradient."""

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from harness.model.norm import use_closed_gradient


def pair(width, trains, dtype):
    """A stock norm with weights of its own, and the same with our forward."""
    norms = [Qwen3VLTextRMSNorm(width, eps=1e-3).to(dtype).requires_grad_(trains) for _ in range(2)]
    weight = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(dtype)
    for norm in norms:
        norm.weight.data = weight.clone()
    use_closed_gradient(norms[1])
    return norms


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_result_and_gradients_are_those_of_the_stock_module(dtype, gap, trains):
    x, grad = torch.randn(2, 1, 5, 3, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for norm in pair(16, trains, dtype):
        leaves = [x.clone().requires_grad_(), *norm.parameters()][: 1 + trains]
        y = norm(leaves[0])
        found.append((y, torch.autograd.grad(y, leaves, grad)))
    (expected, expected_grads), (ours, grads) = found
    assert ours.dtype == expected.dtype and torch.equal(ours, expected)
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, atol=gap * wanted.abs().max().item(), rtol=gap)


def test_a_weight_alone_can_train():
    norms = pair(8, True, torch.float32)
    x = torch.randn(4, 8)
    expected, ours = (torch.autograd.grad(norm(x).square().sum(), [norm.weight])[0] for norm in norms)
    torch.testing.assert_close(ours, expected)


def test_a_compiler_sees_the_stock_module():
    stock, ours = pair(8, False, torch.float32)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(4, 8, requires_grad=True)
    torch.testing.assert_close(torch.compile(ours, backend=keep, fullgraph=True)(x), stock(x))
    assert "rsqrt" in graphs[0].code and "autograd_function" not in graphs[0].code
