"""Layer-wise learning-rate decay: how far below the top of its tower a parameter lies (ELECTRA, arXiv 2003.10555).

A parameter at distance d has its component's rate times decay^d. In a tower of N layers the last one has d = 1, the
first d = N, and what is below them d = N + 1. What stands on top of the layers has d = 0:

- LLM: the final norm and the head have 0, decoder layers 1 to N from the top, the token embedding N + 1. A head that is
  tied to the embedding is the embedding's tensor and goes with it.
- Vision: the mergers (aligner), deepstack mergers among them, have 0, blocks 1 to N from the top, patch and position
  embedding N + 1.

An adapter lies where the layer lies that it is in.
"""

import re
from collections.abc import Iterable

from harness.model.component import Component, component_of, strip_peft

_LAYERS = {Component.llm: r"model\.language_model\.layers\.(\d+)\.", Component.vit: r"model\.visual\.blocks\.(\d+)\."}
_BELOW = {Component.llm: "model.language_model.embed_tokens.", Component.vit: "model.visual."}
"""Prefixes of what is below the layers; of the ViT that is all that is in none of them."""


def layer_of(name: str) -> tuple[Component, int] | None:
    """Returns the tower and the number, from 0 at the bottom, of the layer that a parameter is in; None outside."""
    component = component_of(name)
    found = re.match(_LAYERS[component], strip_peft(name)) if component in _LAYERS else None
    return (component, int(found[1])) if found else None


def places(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Returns where each parameter lies: `layer_03`, `embed` or nothing for the top, and the distance from the top.

    Args:
        names: All parameters of the model, those that do not train among them: they say how high a tower is.
    """
    layers = {name: layer_of(name) for name in names}
    heights = {
        tower: 1 + max((layer[1] for layer in layers.values() if layer and layer[0] is tower), default=-1)
        for tower in _LAYERS
    }

    def place(name: str, layer: tuple[Component, int] | None) -> tuple[str, int]:
        if layer is not None:
            return f"layer_{layer[1]:02d}", heights[layer[0]] - layer[1]
        component = component_of(name)
        if component in _BELOW and strip_peft(name).startswith(_BELOW[component]):
            return "embed", heights[component] + 1
        return "", 0

    return {name: place(name, layer) for name, layer in layers.items()}
