"""Modules that train themselves beside an adapter: `tuner.modules_to_save`, and components that `freeze.full` names.

PEFT trains a copy of each and saves it with the adapter.
"""

from collections.abc import Sequence

from torch import nn

from harness.errors import UserError, reject
from harness.freeze.policy import Policy
from harness.memory.quant.linear import quantized_layers
from harness.model.component import Component

EMBEDDING = "model.language_model.embed_tokens"
"""Stands for the head too where the two are tied."""
HEAD = "lm_head"
_WHOLE = {
    Component.llm: (EMBEDDING, "model.language_model.norm", HEAD),
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

    A tied head goes by the name of the embedding, and a list of layers by those of its members.

    Args:
        model: The base model.
        suffixes: What the user named, as a suffix of module names.
        policy: What may train, and which components train in full.

    Raises:
        UserError: A suffix matches no module with weights, only what is frozen, what lies inside another one of the
            list, or what holds a tied embedding among other weights.
    """
    chosen: dict[str, None] = {}
    for suffix in suffixes:
        chosen |= dict.fromkeys(_matching(model, suffix, policy))
    for component in sorted(policy.full_components(), key=lambda item: item.value):
        modules = [*_WHOLE[component], *_members(model, _LISTS[component])]
        chosen |= dict.fromkeys(_stand_in(model, name) for name in modules if _trains(model, name, policy.full))
    for name in chosen:
        if held := next(quantized_layers(model.get_submodule(name)), None):
            where = f"{name}.{held[0]}".strip(".")
            remedy = f"{where} is quantised and can not train: name it in memory.quant.skip, or leave this out"
            raise reject("tuner.modules_to_save (or freeze.full)", name, remedy)
        above = [other for other in chosen if name.startswith(f"{other}.")]
        if above:
            raise reject("tuner.modules_to_save", name, f"lies inside {above[0]}, which trains itself too: drop one")
        if is_tied(model) and EMBEDDING.startswith(f"{name}."):
            raise reject("tuner.modules_to_save", name, f"holds {EMBEDDING}, which is tied to lm_head: name its parts")
    return list(chosen)


def is_tied(model: nn.Module) -> bool:
    """Returns whether the head's weights are those of the embedding."""
    return model.get_submodule(HEAD).weight is model.get_submodule(EMBEDDING).weight


def _matching(model: nn.Module, suffix: str, policy: Policy) -> list[str]:
    named = [name for name, _ in model.named_modules() if name == suffix or name.endswith(f".{suffix}")]
    weighted = [name for name in named if any(True for _ in model.get_submodule(name).parameters())]
    if not weighted:
        raise _unknown(model, suffix)
    modules = [_stand_in(model, member) for name in weighted for member in _members(model, name)]
    free = [name for name in modules if _trains(model, name, policy.free)]
    if not free:
        raise reject("tuner.modules_to_save", suffix, f"the freeze policy keeps {modules[0]} frozen: free it there")
    return free


def _unknown(model: nn.Module, suffix: str) -> UserError:
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    known = ", ".join(sorted(leaf for leaf in leaves if leaf and not leaf.isdigit()))
    return reject("tuner.modules_to_save", suffix, f"matches no module of the model that has weights; known: {known}")


def _members(model: nn.Module, name: str) -> list[str]:
    """A list of layers has no forward of its own that a copy could stand for."""
    module = model.get_submodule(name)
    return [f"{name}.{leaf}" for leaf, _ in module.named_children()] if isinstance(module, nn.ModuleList) else [name]


def _stand_in(model: nn.Module, name: str) -> str:
    return EMBEDDING if name == HEAD and is_tied(model) else name


def _trains(model: nn.Module, name: str, free: frozenset[str]) -> bool:
    own = _stand_in(model, name)
    return any(f"{own}.{leaf}" in free for leaf, _ in model.get_submodule(own).named_parameters())
