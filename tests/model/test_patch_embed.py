import torch
from transformers import Qwen3VLForConditionalGeneration

from harness.model.checkpoint_path import resolve
from harness.model.patch_embed import make_linear


def test_the_product_is_the_convolution():
    embed = Qwen3VLForConditionalGeneration.from_pretrained(resolve("harness:tiny")).model.visual.patch_embed
    pixels = torch.randn(12, 3 * 2 * 16 * 16)
    stock = embed(pixels)
    gradient = torch.autograd.grad(stock.square().sum(), list(embed.parameters()))
    make_linear(type("Visual", (), {"patch_embed": embed})())
    ours = embed(pixels)
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
    for got, expected in zip(torch.autograd.grad(ours.square().sum(), list(embed.parameters())), gradient, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-5)
