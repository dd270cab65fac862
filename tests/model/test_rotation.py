"""The rotation of steps that are not compiled, against the stock one."""

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from harness.model.rotation import rotate


def test_result_and_gradients_are_those_of_the_stock_function():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    angles = draw(2, 7, 8).repeat(1, 1, 2)
    # As projections leave them: heads behind tokens.
    leaves = [draw(2, 7, heads, 16).transpose(1, 2).requires_grad_() for heads in (4, 2)]
    grads = [draw(*leaf.shape) for leaf in leaves]
    expected, ours = (function(*leaves, angles.cos(), angles.sin()) for function in (apply_rotary_pos_emb, rotate))
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    pairs = zip(*(torch.autograd.grad(results, leaves, grads) for results in (ours, expected)), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted)
