"""A quantised layer, of whichever codec, inside what wraps layers."""

import torch
from torch.utils.checkpoint import checkpoint

from harness.memory.quant.grouped import grouped
from harness.memory.quant.linear import QuantLinear


def test_a_checkpointed_layer_has_the_gradient_of_its_matrix():
    values = torch.randint(16, (8, 12))
    layer = QuantLinear(grouped(values, torch.rand(8, 1), torch.rand(8, 1), 4, (8, 12)), (8, 12), None, torch.float32)
    x = torch.randn(3, 12, requires_grad=True)
    y = checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), x)[0]
    expected = torch.autograd.grad((x @ layer.weight.t()).sin().square().sum(), x)[0]
    assert torch.allclose(found, expected, atol=1e-6)
