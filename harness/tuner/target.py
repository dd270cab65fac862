"""Turns a tuner's targets and a freeze policy into the exact modules that get an adapter."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from harness.errors import UserError, reject
from harness.freeze.policy import Policy
from harness.model.component import PREFIXES, component_of, names
from harness.tuner.beside import HEAD, modules_beside
from harness.tuner.targeted import ALL_LINEAR, TargetedConfig

_LAYERS = "model.language_model.layers"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a method goes into; `all-linear` stands for all of it."""

    noun: str
    """For messages."""
    fits: Callable[[str, nn.Module], bool]
    """Returns whether a module is one, given its name in the model and itself."""


def _is_linear(name: str, module: nn.Module) -> bool:
    # Quantised layers are subclasses of nn.Linear or carry its two sizes.
    return isinstance(module, nn.Linear) or {"in_features", "out_features"} <= vars(module).keys()


LINEAR = Kind("linear layer", _is_linear)
"""What nearly every method goes into."""


def target_regex(model: nn.Module, config: TargetedConfig, policy: Policy, into: Kind = LINEAR) -> str:
    """Returns a regular expression that PEFT matches in full against module names.

    Raises:
        UserError: As for `target_names`.
    """
    chosen = target_names(model, config, policy, into)
    compact = _regex(chosen, any_layer=True)
    reached = {name for name, _ in model.named_modules() if re.fullmatch(compact, name)}
    return compact if reached == set(chosen) else _regex(chosen, any_layer=False)


def target_sizes(model: nn.Module, config: TargetedConfig, policy: Policy) -> dict[str, tuple[int, int]]:
    """Returns inputs and outputs of each linear layer that gets an adapter, by name.

    Raises:
        UserError: As for `target_names`.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in target_names(model, config, policy)}
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}


def target_names(model: nn.Module, config: TargetedConfig, policy: Policy, into: Kind = LINEAR) -> list[str]:
    """Returns the modules that get an adapter, in model order.

    Args:
        model: The base model.
        config: The targets.
        policy: Where adapters may go.
        into: What the method goes into.

    Raises:
        UserError: A target matches nothing of that kind, only what is frozen, or what trains itself; or a layer's
            number is out of range.
    """
    modules = model.named_modules()
    fitting = [name for name, module in modules if into.fits(name, module) and not name.endswith(HEAD)]
    beside = modules_beside(model, config.modules_to_save, policy)
    prefixes = _layer_prefixes(model, config)
    chosen: set[str] = set()
    for key, target, matched in _matched(fitting, config):
        if not matched:
            if target == HEAD:
                raise reject(key, target, "gets no adapter; tuner.modules_to_save=[lm_head] trains it")
            leaves = sorted({name.rpartition(".")[2] for name in fitting})
            raise reject(key, target, f"matches no {into.noun}; known: {', '.join(leaves)}")
        # In model order, so that a message names the first.
        free = dict.fromkeys(n for n in matched if policy.allows(n) and _weight_is_free(model, n, policy))
        if not free:
            raise reject(key, target, _only_frozen(matched, policy))
        own = {name: above for name in free for above in beside if f"{name}.".startswith(f"{above}.")}
        if own and (target != ALL_LINEAR or own.keys() == free.keys()):
            raise _trains_itself(key, target, *next(iter(own.items())))
        reached = {name for name in free.keys() - own.keys() if prefixes is None or name.startswith(prefixes)}
        if not reached:
            raise reject("tuner.layers_to_transform", config.layers_to_transform, f"{key}={target} has nothing there")
        chosen |= reached
    return [name for name in fitting if name in chosen]


def _layer_prefixes(model: nn.Module, config: TargetedConfig) -> tuple[str, ...] | None:
    if config.layers_to_transform is None:
        return None
    number = len(list(model.get_submodule(_LAYERS).children()))
    absent = [layer for layer in config.layers_to_transform if not 0 <= layer < number]
    if absent:
        remedy = f"this model's decoder layers are 0 to {number - 1}"
        raise reject("tuner.layers_to_transform", absent[0], remedy)
    return tuple(f"{_LAYERS}.{layer}." for layer in config.layers_to_transform)


def _matched(fitting: Sequence[str], config: TargetedConfig) -> list[tuple[str, str, list[str]]]:
    """Returns each target under its key, with the modules that it matches."""
    if config.target_regex is not None:
        found = [name for name in fitting if re.fullmatch(config.target_regex, name)]
        return [("tuner.target_regex", config.target_regex, found)]

    def matches(target: str) -> list[str]:
        return [name for name in fitting if target == ALL_LINEAR or name == target or name.endswith(f".{target}")]

    return [("tuner.target_modules", target, matches(target)) for target in config.target_modules]


def _weight_is_free(model: nn.Module, name: str, policy: Policy) -> bool:
    """An adapter stands for the layer's weights: a free bias alone is not enough."""
    own = [f"{name}.{leaf}" for leaf, _ in model.get_submodule(name).named_parameters(recurse=False) if leaf != "bias"]
    return not own or any(parameter in policy.free for parameter in own)


def _only_frozen(matched: Sequence[str], policy: Policy) -> str:
    found = sorted({component_of(name) for name in matched}, key=lambda item: item.value)
    if policy.components() & set(found) and policy.components() & set(found) <= policy.full_components():
        return f"nothing of {names(found)} is left for an adapter: freeze.full trains it, or it is frozen"
    if policy.components().isdisjoint(found):
        return f"lies only in {names(found)}, which the freeze policy keeps frozen"
    return f"lies only in what the freeze policy keeps frozen, {matched[0]} among it"


def _trains_itself(key: str, target: str, name: str, above: str) -> UserError:
    where = "" if name == above else f", in {above},"
    return reject(key, target, f"{name}{where} trains itself by tuner.modules_to_save: take it out of one of the two")


def _regex(chosen: Sequence[str], *, any_layer: bool) -> str:
    """Groups names by component prefix; with any_layer a number stands for all, short enough to read in a config."""
    suffixes: dict[str, set[str]] = {}
    for name in chosen:
        prefix = next(p for prefixes in PREFIXES.values() for p in prefixes if name.startswith(p))
        suffixes.setdefault(prefix, set()).add(re.escape(name.removeprefix(prefix)))
    if any_layer:
        suffixes = {prefix: {re.sub(r"\d+", r"\\d+", name) for name in group} for prefix, group in suffixes.items()}
    return "|".join(f"{re.escape(prefix)}(?:{'|'.join(sorted(group))})" for prefix, group in suffixes.items())
