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
    query, key = stock.apply_rotary_pos_emb(query, key, *position_embeddings)
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
    plain = [getattr(layer, "base_layer", layer)(x) for layer in layers]
    adapted: list[Any] = [layer for layer in layers if isinstance(layer, LoraLinear)]
    if not adapted:
        return plain
    dtype = plain[0].dtype
    dropped = drop(x.to(dtype), getattr(adapted[0].lora_dropout[_ADAPTER], "p", 0.0))
    factors_RI = torch.cat([layer.lora_A[_ADAPTER].weight for layer in adapted]).to(dtype)
    low = iter(F.linear(dropped, factors_RI).split([layer.r[_ADAPTER] for layer in adapted], dim=-1))
    return [
        _adapt(layer, y, next(low)) if isinstance(layer, LoraLinear) else y
        for layer, y in zip(layers, plain, strict=True)
    ]


def _adapt(layer: Any, plain: Tensor, low: Tensor) -> Tensor:
    """Adds a layer's low-rank part, of which `low` is (..., r) of A x, to what the frozen layer makes (..., O)."""
    scale: float = layer.scaling[_ADAPTER]
    change = F.linear(low * scale, layer.lora_B[_ADAPTER].weight.to(low.dtype))
    if _ADAPTER not in layer.lora_variant:
        return plain + change
    magnitude_O = layer.lora_magnitude_vector[_ADAPTER].weight
    factor_O = (magnitude_O / changed_norm(layer, scale)).to(plain.dtype)
    bias = layer.base_layer.bias
    return factor_O * (plain + change) if bias is None else factor_O * (plain - bias + change) + bias


@torch.no_grad()
def changed_norm(layer: Any, scale: float) -> Tensor:
    """Returns the norm of each row of W + scale B A, (O,) float32, without a gradient, as the paper does."""
    weight_OI, a_rI, b_Or = layer.base_layer.weight, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    with torch.autocast(weight_OI.device.type, enabled=False):
        overlap_Or = F.linear(weight_OI, a_rI.to(weight_OI.dtype)).float()
        a_rI, b_Or = a_rI.float(), b_Or.float()
        squared_O = layer.base_norms.float().square() + 2 * scale * (overlap_Or * b_Or).sum(1)
        return (squared_O + scale**2 * ((b_Or @ (a_rI @ a_rI.T)) * b_Or).sum(1)).clamp(min=0).sqrt()
