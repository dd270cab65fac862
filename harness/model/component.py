"""The three components of a Qwen3-VL, as freeze policies, learning rates and reports name them.

`llm` is `model.language_model` and `lm_head`; `aligner` is the merger and every deepstack merger; `vit` is the rest of
`model.visual`. Deepstack mergers belong to the aligner: counted with the ViT they would follow the wrong freeze flag.
"""

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class Component(Enum):
    """A part of the model that is frozen, trained and reported as one."""

    llm = "llm"
    aligner = "aligner"
    vit = "vit"


PREFIXES = {
    Component.llm: ("model.language_model.", "lm_head."),
    Component.aligner: ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    Component.vit: ("model.visual.patch_embed.", "model.visual.pos_embed.", "model.visual.blocks."),
}
"""Parameter-name prefixes of each component in `Qwen3VLForConditionalGeneration`."""

_PEFT_PREFIX = "base_model.model."


def strip_peft(name: str) -> str:
    """Returns a parameter or module name without the prefix that PEFT's wrapper adds."""
    return name.removeprefix(_PEFT_PREFIX)


def component_of(name: str) -> Component:
    """Returns the component that a parameter or module belongs to.

    Args:
        name: Qualified name, with or without PEFT's prefix.

    Raises:
        UserError: The name belongs to no component: the model is not a Qwen3-VL as known here.
    """
    bare = strip_peft(name) + "."
    for component, prefixes in PREFIXES.items():
        if bare.startswith(prefixes):
            return component
    raise UserError(f"parameter {name} belongs to none of {names(Component)}: this is not a Qwen3-VL as known here")


def names(components: Iterable[Component]) -> str:
    """Joins component names for a message."""
    return ", ".join(component.value for component in components)


def stacked_experts(model: "nn.Module") -> list[str]:
    """Returns the names of the weights that stack those of a mixture's experts, which are no linear layers."""
    return [name for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name]
