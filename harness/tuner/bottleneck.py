"""The bottleneck of Houlsby et al. (arXiv 1902.00751), and where it stands in a Qwen3-VL.

It is a child of the module that it stands behind, which calls it by a forward hook: the base weights keep their names,
and training, recomputation under checkpointing and generation all pass through it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.freeze.policy import Policy
from harness.tuner.activation import function
from harness.tuner.adapter import AdapterConfig, Place
from harness.tuner.compute import as_weight

CHILD = "adapter"
"""Name of a bottleneck in the module that it stands behind."""
_START_STD = 0.01


class Bottleneck(nn.Module):
    """Returns x + up(f(down(x))); the identity at start."""

    def __init__(self, width: int, config: AdapterConfig, device: torch.device) -> None:
        """Args: width of what it changes, its settings, and where its weights lie."""
        super().__init__()
        dtype = getattr(torch, config.dtype.name)
        self.down = nn.Linear(width, config.length, device=device, dtype=dtype)
        self.up = nn.Linear(config.length, width, device=device, dtype=dtype)
        self.activation = function(config.activation)
        nn.init.trunc_normal_(self.down.weight, std=_START_STD, a=-2 * _START_STD, b=2 * _START_STD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns (..., D) in the type of x."""
        return x + self.up(self.activation(self.down(as_weight(x, self.down.weight)))).to(x.dtype)

    def behind(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The forward hook of the module that it stands behind."""
        return self(output)


def free_modules(model: PreTrainedModel, config: AdapterConfig, policy: Policy) -> list[str]:
    """Returns the modules that get a bottleneck, in model order.

    Args:
        model: The base model.
        config: The places.
        policy: A module gets one where a weight of its sub-layer is free, and trains not in full.
    """
    layers, blocks = model.model.language_model.layers, model.model.visual.blocks
    pairs = [(f"model.language_model.layers.{i}", "self_attn.o_proj") for i, _ in enumerate(layers)]
    pairs += [(f"model.visual.blocks.{i}", "attn.proj") for i, _ in enumerate(blocks)]
    found: list[str] = []
    for layer, projection in pairs:
        found += [f"{layer}.{projection}"] if Place.attention in config.places else []
        found += [f"{layer}.mlp"] if Place.mlp in config.places else []
    if Place.mlp in config.places:
        levels = model.model.visual.deepstack_merger_list
        found += ["model.visual.merger", *(f"model.visual.deepstack_merger_list.{i}" for i, _ in enumerate(levels))]
    return [name for name in found if _is_free(name, policy)]


def insert(model: PreTrainedModel, config: AdapterConfig, modules: list[str]) -> None:
    """Puts a bottleneck behind each module, in place; they have the model's mode and train."""
    for name in modules:
        module = model.get_submodule(name)
        bottleneck = Bottleneck(_width(model, name), config, next(module.parameters()).device).train(model.training)
        module.add_module(CHILD, bottleneck)
        module.register_forward_hook(bottleneck.behind)


def _is_free(name: str, policy: Policy) -> bool:
    """The sub-layer of an attention's projection is the attention; a free bias alone is not enough."""
    sub_layer = name if name.endswith("mlp") or "merger" in name else name.rpartition(".")[0]
    free = (item for item in policy.free - policy.full if item.startswith(f"{sub_layer}."))
    return any(not item.endswith("bias") for item in free)


def _width(model: PreTrainedModel, name: str) -> int:
    if name.startswith("model.language_model."):
        return model.config.text_config.hidden_size
    vision = model.config.vision_config
    return vision.out_hidden_size if "merger" in name else vision.hidden_size
