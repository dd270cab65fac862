"""Freezes whole components; for adapters the same policy decides where adapters go."""

from dataclasses import dataclass, field

from harness.errors import reject
from harness.model.component import Component
from harness.registry import register


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
def build(config: ComponentFreezeConfig) -> frozenset[Component]:
    """Returns the components that train."""
    return frozenset(Component) - frozenset(config.frozen)
