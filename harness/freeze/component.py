"""Says which weights stay frozen: by component, name prefix, regular expression or ratio, with overrides that win.

All of them add up: what any of them names is frozen, then `trainable` and `trainable_regex` free what they name. For
adapters the same policy decides where adapters go. Names are the model's own, as `named_parameters` gives them:
`model.visual...`, `model.language_model...`, `lm_head...`. The older `model.layers.0` of text models is refused with
the name that fits. Where this differs from ms-swift: a prefix ends at a dot, so that `layers.1` is not `layers.10` too,
and what has no effect is refused.
"""

import re
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
    prefixes: list[str] = field(default_factory=list)
    """More to freeze, as names of parameters or of modules above them: model.language_model.layers.0 (not layers.0)."""
    regex: str | None = None
    """More to freeze: a regular expression, searched for in parameter names. `layers\\.[0-5]\\.` is six layers."""
    ratio: float = 0.0
    """More to freeze: this share of all weights from the bottom, 0 to 1; ViT, aligner, embedding, layers, head."""
    trainable: list[str] = field(default_factory=list)
    """Exceptions that train whatever the keys above say; written as freeze.prefixes. On tied models no lm_head."""
    trainable_regex: str | None = None
    """Exceptions that train whatever the keys above say; written as freeze.regex."""

    full: list[Component] = field(default_factory=list)
    """With an adapter: components that train themselves, in place of one (mixed policies), and are saved with it."""

    def __post_init__(self) -> None:
        both = [item.name for item in self.full if item in self.frozen]
        if both:
            raise reject("freeze.full", both, "is frozen as well: take it out of freeze.frozen")
        for key in ("prefixes", "trainable"):
            if not all(re.fullmatch(r"\w+(\.\w+)*\.?", prefix) for prefix in getattr(self, key)):
                raise reject(f"freeze.{key}", getattr(self, key), "names only, with dots; patterns go to its regex key")
        for key in ("regex", "trainable_regex"):
            _check_regex(f"freeze.{key}", getattr(self, key))
        if not 0 <= self.ratio <= 1:
            raise reject("freeze.ratio", self.ratio, "must be at least 0 and at most 1")
        if self.overrides():
            return
        if set(self.frozen) == set(Component):
            raise reject("freeze.frozen", [item.name for item in self.frozen], "freezes everything: nothing can train")
        if self.ratio == 1:
            raise reject("freeze.ratio", self.ratio, "freezes everything: nothing can train; see freeze.trainable")

    def overrides(self) -> bool:
        """Returns whether something may train inside a component of `frozen`."""
        return bool(self.trainable) or self.trainable_regex is not None


def _check_regex(key: str, pattern: str | None) -> None:
    if pattern == "":
        raise reject(key, "''", "matches everything; null for none")
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise reject(key, pattern, f"is no regular expression ({error})") from error


@register("freeze", ComponentFreezeConfig)
def build(config: ComponentFreezeConfig, model: "PreTrainedModel") -> "Policy":
    """Works the policy out for a model; marks nothing.

    Args:
        config: What stays frozen.
        model: The base model, before any adapter.

    Raises:
        UserError: A prefix, a pattern or the ratio names nothing or changes nothing, or everything is frozen.
    """
    from harness.freeze.matching import Names, bottom
    from harness.freeze.policy import Policy

    known = Names(model)
    of_components = {name for name in known.sizes if component_of(name) in config.frozen}
    named = known.by_keys("freeze.prefixes", config.prefixes, "freeze.regex", config.regex)
    if config.ratio:
        named["freeze.ratio", str(config.ratio)] = bottom(known.sizes, config.ratio)
    for (key, value), names in named.items():
        if names <= of_components:
            listed = [item.name for item in config.frozen]
            raise reject(
                key, value, f"adds nothing to freeze.frozen={listed}; leave it out, or freeze fewer components"
            )
    frozen = of_components.union(*named.values())
    freed = known.by_keys("freeze.trainable", config.trainable, "freeze.trainable_regex", config.trainable_regex)
    for (key, value), names in freed.items():
        if not names & frozen:
            raise reject(key, value, "frees nothing: nothing of it is frozen; leave it out")
    free = (known.sizes.keys() - frozen).union(*freed.values())
    if not free:
        raise reject("freeze", ", ".join("=".join(item) for item in named), "freezes everything: nothing can train")
    for component in config.full:
        if component not in {component_of(name) for name in free}:
            raise reject("freeze.full", component.name, "all of it is frozen by the other keys; leave it out of one")
    exceptions = {item: frozenset(names) for item, names in freed.items()}
    return Policy(frozenset(free), frozenset(name for name in free if component_of(name) in config.full), exceptions)
