"""LoRA and DoRA of layers that share their input, as one product: q, k, v of an attention, gate and up of an MLP.

PEFT's modules each drop, cast to the adapter's type and multiply by an A of their own; here the group's input is
dropped once and multiplied once with all A on top of one another, in the type of the products. The parameters stay in
PEFT's modules, so that checkpoints, exports, merging and generation are theirs; only training steps come here.

Deviations: layers of a group share one dropout mask. DoRA's norm of W + s B A (arXiv 2402.09353, eq. 5) is summed from
three terms of which none is as large as W, ||W||^2 + 2 s <W, B A> + s^2 ||B A||^2 per row in float32, and with dropout
on only the low-rank path is dropped, where PEFT runs the frozen layer a second time on the dropped input.

Shapes: T tokens, I inputs and O outputs of a layer, r rank, R ranks of a group together.
"""

import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl import modeling_qwen3_vl as stock

from harness.memory.quant.linear import QuantLinear
from harness.model.direct import is_direct
from harness.model.loss import is_frozen_matrix
from harness.model.rotation import rotate
from harness.tuner.drop import drop

log = logging.getLogger(__name__)

_ADAPTER = "default"
_FROZEN = (nn.Linear, QuantLinear)
"""Classes of layers that a group may be made of, where none of their weights trains."""


def fuse(language: nn.Module) -> None:
    """Makes attentions and MLPs of a text model run their adapted layers in groups, in place.

    What it does not know, a group with another kind of layer in it, is left as it is; the log has how many were known.

    Args:
        language: The text model, with PEFT's modules in it.
    """
    changed = 0
    modules: list[Any] = list(language.modules())
    for module in modules:
        forward: Callable[..., Any]
        if type(module) is stock.Qwen3VLTextAttention:
            layers = [module.q_proj, module.k_proj, module.v_proj, module.o_proj]
            forward = _attention
        elif type(module) is stock.Qwen3VLTextMLP:
            layers, forward = [module.gate_proj, module.up_proj, module.down_proj], _mlp
        else:
            continue
        if all(map(_known, layers)) and any(isinstance(layer, LoraLinear) for layer in layers):
            for layer in layers:
                if isinstance(layer, LoraLinear) and _ADAPTER in layer.lora_variant:
                    norms_O = torch.linalg.vector_norm(layer.base_layer.weight, dim=1, dtype=torch.float32)
                    layer.register_buffer("base_norms", norms_O, persistent=False)
            module.forward_apart = module.forward
            module.forward = MethodType(forward, module)
            changed += 1
    log.info("tuner.fused: %d attentions and MLPs of the LLM train in groups", changed)


def _known(layer: nn.Module) -> bool:
    """Says whether a layer is one that `products` computes: a frozen linear layer, bare or with one LoRA or DoRA."""
    if type(layer) is not LoraLinear:
        return type(layer) in _FROZEN and not any(p.requires_grad for p in layer.parameters())
    base: Any = layer.base_layer
    variant = layer.lora_variant.get(_ADAPTER)
    return (
        type(base) in _FROZEN
        and not any(p.requires_grad for p in base.parameters())
        and list(layer.lora_A) == [_ADAPTER]
        and not layer.lora_bias[_ADAPTER]
        and (variant is None or isinstance(variant, DoraLinearVariant))
    )


def _apart(*layers: Any) -> bool:
    """Says whether layers are merged or their adapters off, as for a comparison with the base model."""
    return any(isinstance(layer, LoraLinear) and (layer.merged or layer.disable_adapters) for layer in layers)


def _attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The stock attention's forward in training, projections in groups."""
    layers = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
    if not self.training or past_key_values is not None or _apart(*layers):
        return self.forward_apart(
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query, key, value = (part.view(shape) for part in products(hidden_states, *layers[:3]))
    query, key = self.q_norm(query).transpose(1, 2), self.k_norm(key).transpose(1, 2)
    query, key = rotate(query, key, *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, stock.eager_attention_forward)
    dropout = self.attention_dropout
    out, weights = attend(
        self, query, key, value.transpose(1, 2), attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
    )
    (out,) = products(out.reshape(*hidden_states.shape[:-1], -1), self.o_proj)
    return out, weights


def _mlp(self: Any, x: Tensor) -> Tensor:
    """The stock MLP's forward in training, gate and up together."""
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    if not self.training or _apart(*layers):
        return self.forward_apart(x)
    gate, up = products(x, *layers[:2])
    (down,) = products(self.act_fn(gate) * up, self.down_proj)
    return down


def products(x: Tensor, *layers: Any) -> list[Tensor]:
    """Returns what each layer makes of one input, (..., O) each.

    Args:
        x: (..., I).
        layers: Linear layers, bare or PEFT's; those with an adapter have one dropout rate.
    """
    bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
    adapted: list[Any] = [layer for layer in layers if isinstance(layer, LoraLinear)]
    if not adapted:
        return [base(x) for base in bases]
    joined = is_direct(x) and all(map(is_frozen_matrix, bases))
    sums = (_joined if joined else _one_by_one)(x, bases, layers, adapted)
    return [
        _weigh(layer, y) if isinstance(layer, LoraLinear) and _ADAPTER in layer.lora_variant else y
        for layer, y in zip(layers, sums, strict=True)
    ]


def _one_by_one(x: Tensor, bases: list[Any], layers: tuple[Any, ...], adapted: list[Any]) -> list[Tensor]:
    """Returns W x + s B A x of each layer, (..., O), for any kind of frozen layer, in compiled programs too."""
    plain = [base(x) for base in bases]
    dtype = plain[0].dtype
    dropped = drop(x.to(dtype), _rate(adapted))
    factors_RI = torch.cat([layer.lora_A[_ADAPTER].weight for layer in adapted]).to(dtype)
    low = iter(F.linear(dropped, factors_RI).split([layer.r[_ADAPTER] for layer in adapted], dim=-1))
    return [
        y + _change(layer, next(low)) if isinstance(layer, LoraLinear) else y
        for layer, y in zip(layers, plain, strict=True)
    ]


def _change(layer: Any, low: Tensor) -> Tensor:
    """Returns s B A x (..., O) of A x (..., r)."""
    return F.linear(low * layer.scaling[_ADAPTER], layer.lora_B[_ADAPTER].weight.to(low.dtype))


def _joined(x: Tensor, bases: list[Any], layers: tuple[Any, ...], adapted: list[Any]) -> tuple[Tensor, ...]:
    """Returns the same, for plain matrices W on a CPU."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else bases[0].weight.dtype
    x, rate = x.to(dtype), _rate(adapted)
    scales = [layer.scaling[_ADAPTER] if isinstance(layer, LoraLinear) else None for layer in layers]
    weights = [base.weight for base in bases]
    weights += [layer.lora_A[_ADAPTER].weight for layer in adapted]
    weights += [layer.lora_B[_ADAPTER].weight for layer in adapted]
    weights = [weight if weight.dtype is dtype else weight.to(dtype) for weight in weights]
    return _Joined.apply(x, drop(x, rate) if rate else None, scales, *weights)


def _rate(adapted: list[Any]) -> float:
    return getattr(adapted[0].lora_dropout[_ADAPTER], "p", 0.0)


class _Joined(torch.autograd.Function):
    """W x + s B A x of a group in as few operations as can be: at small sizes their number is what a step costs.

    A x and its gradient stand as (R, T), and gradients of B as (r, O), for products with few rows take a fraction of
    the time of those with few columns on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, scales: list[float | None], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns (..., O) of each layer.

        Args:
            ctx: Autograd's.
            x: (..., I).
            dropped: What A multiplies, where it is not `x`.
            scales: s of each layer, None for one without an adapter.
            weights: W of each layer (O, I), then A of each adapted one (r, I), then B (O, r).
        """
        frozen_OI, factors = weights[: len(scales)], weights[len(scales) :]
        factors_rI, factors_Or = factors[: len(factors) // 2], factors[len(factors) // 2 :]
        ctx.scales = [scale for scale in scales if scale is not None]
        ctx.places = [number for number, scale in enumerate(scales) if scale is not None]
        ctx.ranks = [len(a_rI) for a_rI in factors_rI]
        x_TI = x.flatten(0, -2)
        a_RI = _on_top(list(factors_rI))
        low_RT = a_RI @ (x_TI if dropped is None else dropped.flatten(0, -2)).T
        sums_TO = [x_TI @ w_OI.T for w_OI in frozen_OI]
        parts = zip(ctx.places, low_RT.split_with_sizes(ctx.ranks), factors_Or, ctx.scales, strict=True)
        for place, low_rT, b_Or, scale in parts:
            sums_TO[place] = torch.addmm(sums_TO[place], low_rT.T, b_Or.T, alpha=scale)
        ctx.has_own = dropped is not None
        ctx.save_for_backward(x if dropped is None else dropped, a_RI, low_RT, *factors_Or, *frozen_OI)
        return tuple([y_TO.view(*x.shape[:-1], -1) for y_TO in sums_TO])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, of what A multiplies, of each A and of each B."""
        dropped, a_RI, low_RT, *weights = ctx.saved_tensors
        factors_Or, frozen_OI = weights[: len(ctx.places)], weights[len(ctx.places) :]
        grads_TO = [grad.flatten(0, -2) for grad in grads]
        own_TO = [grads_TO[place] for place in ctx.places]
        parts = list(zip(own_TO, low_RT.split_with_sizes(ctx.ranks), factors_Or, ctx.scales, strict=True))
        grads_Or = [(low_rT @ grad_TO).mul_(scale).T for grad_TO, low_rT, _, scale in parts]
        slope_RT = _on_top([(b_Or.T @ grad_TO.T).mul_(scale) for grad_TO, _, b_Or, scale in parts])
        grads_rI = (slope_RT @ dropped.flatten(0, -2)).split_with_sizes(ctx.ranks)
        grad_TI = low_TI = None
        if ctx.needs_input_grad[0]:
            grad_TI = grads_TO[0] @ frozen_OI[0]
            for grad_TO, w_OI in zip(grads_TO[1:], frozen_OI[1:], strict=True):
                grad_TI.addmm_(grad_TO, w_OI)
            if ctx.has_own:
                low_TI = (slope_RT.T @ a_RI).view_as(dropped)
            else:
                grad_TI.addmm_(slope_RT.T, a_RI)
            grad_TI = grad_TI.view_as(dropped)
        frozen = [None] * len(frozen_OI)
        return grad_TI, low_TI, None, *frozen, *grads_rI, *grads_Or


def _on_top(matrices: list[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices)


def _weigh(layer: Any, changed: Tensor) -> Tensor:
    """Applies DoRA's magnitude to (W + s B A) x of shape (..., O), and not to the bias."""
    magnitude_O = layer.lora_magnitude_vector[_ADAPTER].weight
    factor_O = (magnitude_O / changed_norm(layer, layer.scaling[_ADAPTER])).to(changed.dtype)
    bias = layer.base_layer.bias
    return factor_O * changed if bias is None else factor_O * (changed - bias) + bias


@torch.no_grad()
def changed_norm(layer: Any, scale: float) -> Tensor:
    """Returns the norm of each row of W + scale B A, (O,) float32, without a gradient, as the paper does."""
    weight_OI, a_rI, b_Or = layer.base_layer.weight, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    with torch.autocast(weight_OI.device.type, enabled=False):
        overlap_Or = F.linear(weight_OI, a_rI.to(weight_OI.dtype)).float()
        a_rI, b_Or = a_rI.float(), b_Or.float()
        squared_O = layer.base_norms.float().square() + 2 * scale * (overlap_Or * b_Or).sum(1)
        return (squared_O + scale**2 * ((b_Or @ (a_rI @ a_rI.T)) * b_Or).sum(1)).clamp(min=0).sqrt()
