"""Composes command-line overrides into a checked RunConfig, with one readable message for each mistake."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from harness import registry
from harness.config import RunConfig, to_run_config
from harness.errors import UserError, reject

ROOT = "config"
"""Name of the root YAML file in `conf/`."""


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Composes one run's config, Hydra's own node left out.

    Raises:
        UserError: An override names an unknown group, option or key, or a value of the wrong type.
    """
    try:
        cfg = _compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from error
    _refuse_unknown_keys(cfg)
    return cfg


def check(overrides: Sequence[str], *, multirun: bool) -> list[RunConfig]:
    """Composes and validates every trial that a command line asks for, before any of them starts.

    Args:
        overrides: What stands behind `python -m harness`, without flags.
        multirun: Whether `tuner.rank=4,8` is a sweep; otherwise it is refused.
    """
    trials = list(_trials(overrides)) if multirun else [list(overrides)]
    checked = []
    for trial in trials:
        try:
            checked.append(to_run_config(compose_config(trial)))
        except UserError as error:
            which = f"in the trial {' '.join(trial)}: " if len(trials) > 1 else ""
            raise UserError(f"{which}{error}") from error
    return checked


def type_text(hint: Any) -> str:
    """Spells a field's type for a message: `int`, `float or null`, or an enum's members."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(member.name for member in hint)
    members = get_args(hint)
    if type(None) in members:
        return f"{type_text(next(member for member in members if member is not type(None)))} or null"
    if get_origin(hint) is list:
        return f"list of {type_text(next(iter(members)))}"
    if get_origin(hint) is dict:
        return f"map of {type_text(members[0])} to {type_text(members[1])}"
    return {"bool": "true or false", "Any": "any"}.get(name := getattr(hint, "__name__", str(hint)), name)


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(registry.CONF), version_base="1.3"):
        return compose(ROOT, list(overrides))


def _trials(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Expands a grid; a distribution (`interval(...)`) is a sweeper's own matter and is left at the default."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _explain(error, overrides) from error
    discrete = [item for item in parsed if not item.is_sweep_override() or item.is_discrete_sweep()]
    # Hydra's own overrides configure the sweep as a whole and can not be composed per trial without its node.
    task = [item for item in discrete if not item.get_key_element().lstrip("+~").startswith("hydra")]
    yield from (trial for batch in BasicSweeper.split_arguments(task, None) for trial in batch)


def _explain(error: Exception, overrides: Sequence[str]) -> UserError:
    """Says what the user typed, what is wrong with it and what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = registry.options(group)
        return UserError(f"{group}={option}: no such option.{_did_you_mean(option, known)} Known: {', '.join(known)}")
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        remedy = f" Quote a value that holds # or :, {key}=\"'{value}'\"." if value else ""
        return UserError(f"{error.override}: not of the form key=value ({str(error).splitlines()[0]}).{remedy}")
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        key = str(cause.full_key)
        return _explain_value(key, cause) if isinstance(cause, ValidationError) else _explain_key(key, overrides)
    return UserError(str(error))


def _explain_value(key: str, cause: ValidationError) -> UserError:
    hint = _field_types(cause.object_type).get(str(cause.key)) if cause.object_type else None
    wanted = f"expected {type_text(hint)}" if hint else str(cause).splitlines()[0]
    return reject(key, cause.value, wanted)


def _explain_key(key: str, overrides: Sequence[str]) -> UserError:
    groups = [item for item in overrides if item.partition("=")[0] in registry.GROUPS]
    cfg = _compose(groups)
    parent, _, leaf = key.rpartition(".")
    known = sorted(str(name) for name in (OmegaConf.select(cfg, parent) if parent else cfg) or {})
    return _no_such_key(next(item for item in overrides if key in item), f"{parent}." if parent else "", leaf, known)


def _no_such_key(typed: str, prefix: str, leaf: str, known: Sequence[str]) -> UserError:
    remedy = _did_you_mean(leaf, known, prefix)
    return UserError(
        f"{typed}: no such key.{remedy} Known{f' below {prefix[:-1]}' if prefix else ''}: {', '.join(known)}"
    )


def _did_you_mean(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def _field_types(kind: Any) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}


def _refuse_unknown_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Refuses what `+tuner.rnak=4` adds: OmegaConf lets it pass and only a slotted dataclass would trip over it."""
    known = _field_types(OmegaConf.get_type(cfg))
    for key in map(str, cfg):
        if known and key not in known:
            raise _no_such_key(f"{prefix}{key}={cfg[key]}", prefix, key, sorted(known))
        if OmegaConf.is_missing(cfg, key):
            continue
        if isinstance(value := cfg[key], DictConfig):
            _refuse_unknown_keys(value, f"{prefix}{key}.")
