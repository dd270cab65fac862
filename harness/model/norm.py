"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with its gradient in closed form, for steps on the CPU.

    y = w x r,  r = (mean x^2 + eps)^(-1/2),  dx = r (w dy) - x r^3 mean(x w dy)

The forward pass is the stock module's, to the bit. Autograd's backward pass of it takes twice as many operations, and
at small sizes on the CPU their number is what a step costs. Elsewhere the stock module runs (`direct.py`).

Shapes: D width.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

from harness.model.direct import is_direct


def use_closed_gradient(model: nn.Module) -> None:
    """Replaces the forward of a model's RMSNorms, in place."""
    for module in model.modules():
        if isinstance(module, (Qwen3VLTextRMSNorm, Qwen3VLMoeTextRMSNorm)):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: Any, x: Tensor) -> Tensor:
    """Returns (..., D), in the type of the stock module's result."""
    if not is_direct(x):
        return type(self).forward(self, x)
    return _Norm.apply(x, self.weight, self.variance_epsilon)  # type: ignore[return-value]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        exact = x.to(torch.float32)
        factor = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_D, factor)
        return weight_D * (exact * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, factor = ctx.saved_tensors
        exact = x.to(torch.float32)
        grad_D = None
        if ctx.needs_input_grad[1]:
            grad_D = (grad * (exact * factor).to(x.dtype)).flatten(0, -2).sum(0).to(weight_D.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_D, None
        slope = (grad * weight_D).to(torch.float32)
        shrink = (slope * exact).sum(-1, keepdim=True).mul_(factor.pow(3)).div_(x.shape[-1])
        return slope.mul_(factor).addcmul_(exact, shrink, value=-1).to(x.dtype), grad_D, None
