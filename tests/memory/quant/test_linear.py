"""A quantised layer, of whichever codec, inside what wraps layers."""

import pytest
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


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does
@pytest.mark.parametrize("trained", [False, True], ids=["no gradient", "gradient"])
@pytest.mark.parametrize("tensors", [2, 3])
def test_compiles_whole_in_the_first_layer_too(tensors, trained):
    """Where no gradient flows, dynamo counts the arguments of an autograd function: two tensors were one too many."""
    values, zero = torch.randint(16, (8, 12)), torch.rand(8, 1) if tensors == 3 else None
    layer = QuantLinear(grouped(values, torch.rand(8, 1), zero, 4, (8, 12)), (8, 12), None, torch.float32)
    x = torch.randn(3, 12, requires_grad=trained)
    torch._dynamo.reset()
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, x @ layer.weight.t())
    assert found.requires_grad is trained
    torch._dynamo.reset()
