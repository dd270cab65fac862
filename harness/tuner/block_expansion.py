"""Puts copies of decoder layers that compute nothing yet between the layers of the LLM."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from harness.errors import UserError

_OUTPUTS = re.compile(r"(self_attn\.o_proj|mlp(\.experts)?\.down_proj)(\.weight|\.bias)?")
"""What a layer adds to the residual stream passes through these, in dense layers and in mixtures of experts."""


def expand(model: PreTrainedModel, behind: Sequence[int]) -> frozenset[str]:
    """Inserts blocks that start as the identity, in place, and makes config and cache count them.

    Args:
        model: The Qwen3-VL.
        behind: For each new block, in order, the number of the old layer whose copy it is and behind which it stands.

    Returns:
        The names of the new blocks' parameters.

    Raises:
        UserError: The layers of the checkpoint differ by their number, which the new blocks would shift.
    """
    language: Any = model.model.language_model
    config = language.config
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise UserError(
            "tuner=llamapro: mlp_only_layers and decoder_sparse_step of this checkpoint go by the number of a layer, "
            "which new blocks shift; use another tuner"
        )
    plan = [(number, is_new) for number in range(len(language.layers)) for is_new in _behind(number, behind)]
    old = language.layers
    language.layers = nn.ModuleList(
        _identity(old[number], config) if is_new else old[number] for number, is_new in plan
    )
    for place, layer in enumerate(language.layers):
        # Its place in the cache of keys and values.
        layer.self_attn.layer_idx = place
    config.num_hidden_layers = len(plan)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[number] for number, _ in plan]
    places = [place for place, (_, is_new) in enumerate(plan) if is_new]
    return frozenset(
        f"model.language_model.layers.{place}.{name}"
        for place in places
        for name, _ in language.layers[place].named_parameters()
    )


def _behind(number: int, behind: Sequence[int]) -> list[bool]:
    """Returns the old layer itself, not new, and its copies."""
    return [False] + [True] * behind.count(number)


def _identity(layer: nn.Module, config: Any) -> nn.Module:
    """Returns a copy that adds nothing to the residual stream; it shares the config, which names the kernel in use."""
    block = copy.deepcopy(layer, {id(config): config})
    for name, parameter in block.named_parameters():
        if _OUTPUTS.fullmatch(name):
            parameter.data.zero_()
    return block
