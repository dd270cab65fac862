"""Modules that train themselves beside an adapter: `tuner.modules_to_save`, and components that `freeze.full` names."""

from collections.abc import Sequence

from torch import nn

from harness.errors import reject
from harness.freeze.policy import Policy
from harness.model.component import Component

_WHOLE = {
    Component.llm: ("model.language_model.embed_tokens", "model.language_model.norm", "lm_head"),
    Component.aligner: ("model.visual.merger",),
    Component.vit: ("model.visual.patch_embed", "model.visual.pos_embed"),
}
_LISTS = {
    Component.llm: "model.language_model.layers",
    Component.aligner: "model.visual.deepstack_merger_list",
    Component.vit: "model.visual.blocks",
}


def modules_beside(model: nn.Module, suffixes: Sequence[str], policy: Policy) -> list[str]:
    """Returns the full names of the modules that train themselves beside an adapter.

    Args:
        model: The base model.
        suffixes: What the user named, as a suffix of module names; modules inside another one of the list are refused.
        policy: For the components that train in full.

    Raises:
        UserError: A suffix matches no module with weights, or names one that holds layers the adapter goes into.
    """
    weighted = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    chosen: dict[str, None] = {}
    for suffix in suffixes:
        matched = [name for name in weighted if name == suffix or name.endswith(f".{suffix}")]
        if not matched:
            raise reject("tuner.modules_to_save", suffix, "matches no module of the model that has weights")
        chosen |= dict.fromkeys(matched)
    for component in sorted(policy.full_components(), key=lambda item: item.value):
        chosen |= dict.fromkeys(_modules_of(model, component))
    names = list(chosen)
    for name in names:
        above = [other for other in names if name.startswith(f"{other}.")]
        if above:
            raise reject("tuner.modules_to_save", name, f"lies inside {above[0]}, which is in the list too")
    return names


def _modules_of(model: nn.Module, component: Component) -> list[str]:
    """Returns the modules that a component is made of: blocks of layers one by one."""
    tied = model.get_submodule("lm_head").weight is model.get_submodule("model.language_model.embed_tokens").weight
    whole = [name for name in _WHOLE[component] if not (tied and name == "lm_head")]
    return whole + [
        f"{_LISTS[component]}.{number}" for number, _ in enumerate(model.get_submodule(_LISTS[component]).children())
    ]
