"""The layers that get a LoRA, each with its rank and scale; and which of its weights train at LoRA+'s rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft.utils.other import get_pattern_key
from torch import nn

from harness.errors import reject
from harness.freeze.policy import Policy
from harness.tuner.lora_like import LoraLikeConfig
from harness.tuner.target import target_names


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer that gets an adapter."""

    name: str
    rank: int
    alpha: float
    scale: float
    """Factor of B A: alpha / rank, or alpha / sqrt(rank) with rslora."""


def plan(base: nn.Module, config: LoraLikeConfig, policy: Policy) -> list[Layer]:
    """Returns the layers that get an adapter, in model order.

    Raises:
        UserError: A target or a pattern names no layer, or a rank is larger than its layer.
    """
    names = target_names(base, config, policy)
    _check_used("tuner.rank_pattern", config.rank_pattern, names)
    _check_used("tuner.alpha_pattern", config.alpha_pattern, names)
    layers = []
    for name in names:
        key = get_pattern_key(list(config.rank_pattern), name)
        rank = config.rank_pattern.get(key, config.rank)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), name), config.alpha)
        most = smaller_side(base, name)
        if rank > most:
            where = f"tuner.rank_pattern.{key}" if key in config.rank_pattern else "tuner.rank"
            raise reject(where, rank, f"is larger than the layer {name}: at most {most}, or set tuner.rank_pattern")
        layers.append(Layer(name, rank, alpha, alpha / (math.sqrt(rank) if config.rslora else rank)))
    return layers


def smaller_side(base: nn.Module, name: str) -> int:
    """Returns the smaller of a linear layer's two sizes: the largest rank that a matrix of its shape can have."""
    module: Any = base.get_submodule(name)
    return min(module.in_features, module.out_features)


def lora_plus_scales(model: nn.Module, ratio: float | None) -> dict[str, float]:
    """Returns LoRA+'s factor on the learning rate of each B, by parameter name."""
    if ratio is None:
        return {}
    return {name: ratio for name, p in model.named_parameters() if ".lora_B." in name and p.requires_grad}


def _check_used(key: str, patterns: Mapping[str, object], names: Sequence[str]) -> None:
    used = {get_pattern_key(list(patterns), name) for name in names}
    for pattern, value in patterns.items():
        if pattern not in used:
            remedy = f"matches no layer that gets an adapter, or an earlier pattern takes them all; such as {names[0]}"
            raise reject(f"{key}.{pattern}", value, remedy)
