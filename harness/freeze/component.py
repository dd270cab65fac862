"""Freezes whole components; for adapters the same policy decides where adapters go."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import reject
from harness.model.component import Component, component_of
from harness.registry import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.freeze.policy import Policy


@dataclass(kw_only=True, slots=True)
class ComponentFreezeConfig:
    """What stays frozen. Full fine-tuning trains the rest; an adapter is put into the rest."""

    name: str = "component"
    frozen: list[Component] = field(default_factory=lambda: [Component.vit, Component.aligner])
    """Components that stay as they are: any of llm, aligner (deepstack mergers included), vit."""

    def __post_init__(self) -> None:
        if set(self.frozen) == set(Component):
            raise reject("freeze.frozen", [item.name for item in self.frozen], "freezes everything: nothing can train")


@register("freeze", ComponentFreezeConfig)
def build(config: ComponentFreezeConfig, model: "PreTrainedModel") -> "Policy":
    """Works the policy out for a model; marks nothing.

    Args:
        config: What stays frozen.
        model: The base model, before any adapter.
    """
    from harness.freeze.policy import Policy

    frozen = frozenset(config.frozen)
    return Policy(frozenset(name for name, _ in model.named_parameters() if component_of(name) not in frozen))
