"""What a freeze policy says of a model: which parameters may train."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.model.component import Component, component_of, strip_peft


@dataclass(frozen=True, slots=True)
class Policy:
    """A freeze policy, worked out for a model. Full fine-tuning trains what is free; adapters go into what is free."""

    free: frozenset[str]
    """Names of the base model's parameters that are not frozen."""
    full: frozenset[str] = frozenset()
    """Of those: trained themselves even where the tuner is an adapter (mixed policies)."""
    exceptions: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """Of those: what each exception names, by key and value."""

    def allows(self, module: str) -> bool:
        """Returns whether a module may get an adapter: some parameter of its own or below is free, and not full.

        Args:
            module: Qualified name in the base model, with or without PEFT's prefix.
        """
        prefix = strip_peft(module) + "."
        return any(name.startswith(prefix) and name not in self.full for name in self.free)

    def components(self) -> frozenset[Component]:
        """Returns the components in which something is free."""
        return frozenset(component_of(name) for name in self.free)

    def full_components(self) -> frozenset[Component]:
        """Returns the components that train themselves even where the tuner is an adapter."""
        return frozenset(component_of(name) for name in self.full)
