"""Composes command-line overrides into a checked RunConfig, with one readable message for each mistake."""

import dataclasses
import difflib
from collections.abc import Sequence
from enum import Enum
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from harness import registry, yaml_file
from harness.config import RunConfig, to_run_config
from harness.errors import UserError, reject
from harness.sweep import plugin  # noqa: F401 - options that conf/config.yaml chooses

ROOT = "config"
"""Name of the root YAML file in `conf/`."""
CHOICES = (*registry.GROUPS, "experiment")
"""Groups of which the command line chooses a file."""


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Composes one run's config, Hydra's own node left out.

    Raises:
        UserError: An override names an unknown group, option or key, or a value of the wrong type, or a file in `conf/`
            can not be read.
    """
    for choice, _, option in (item.partition("=") for item in overrides):
        if choice.lstrip("+") in CHOICES and (file := registry.CONF / choice.lstrip("+") / f"{option}.yaml").is_file():
            yaml_file.parse(file)
    try:
        cfg = _compose(overrides)
        _refuse_unknown_keys(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error
    except UserError:
        raise
    except Exception as error:  # Hydra raises nearly anything on a YAML file that is broken or no config
        chosen = " ".join(item for item in overrides if item.partition("=")[0].lstrip("+") in CHOICES) or ROOT
        raise UserError(
            f"{chosen}: a file below {registry.CONF} is no config ({yaml_file.first_line(error)})"
        ) from error
    _refuse_numbers_for_truth(cfg, overrides)
    return cfg


def check(overrides: Sequence[str], *, multirun: bool) -> list[RunConfig]:
    """Composes and validates every trial that a command line asks for, before any of them starts.

    Args:
        overrides: What stands behind `python -m harness`, without flags.
        multirun: Whether `tuner.rank=4,8` is a sweep; otherwise it is refused.
    """
    return list(check_all(grid(overrides) if multirun else [list(overrides)]).values())


def check_all(trials: Sequence[Sequence[str]]) -> dict[tuple[str, ...], RunConfig]:
    """Composes and validates trials; returns each one's config by its overrides.

    Raises:
        UserError: Some can not run: all mistakes at once, each with the first trial that makes it.
    """
    checked: dict[tuple[str, ...], RunConfig] = {}
    mistakes: dict[str, list[Sequence[str]]] = {}
    causes = []
    for trial in trials:
        try:
            checked[tuple(trial)] = to_run_config(compose_config(trial))
        except UserError as error:
            mistakes.setdefault(str(error), []).append(trial)
            causes.append(error)
    if mistakes:
        lines = [f"{_which(found, len(trials))}{message}" for message, found in mistakes.items()]
        raise UserError("\nerror: ".join(lines)) from causes[0]
    return checked


def grid(overrides: Sequence[str], arms: Sequence[Sequence[str]] = ((),)) -> list[list[str]]:
    """Returns the overrides of each trial: every combination of comma-separated values, within every arm.

    A distribution (`interval(...)`) is a sweeper's own matter and is left at the default; so are Hydra's own overrides,
    which configure the sweep as a whole and can not be composed per trial without its node.

    Args:
        overrides: What stands behind `python -m harness`, without flags.
        arms: Overrides that vary together; those of the command line win.

    Raises:
        UserError: An override can not be read.
    """
    task = [
        item
        for item in parse(overrides)
        if (not item.is_sweep_override() or item.is_discrete_sweep())
        and not item.get_key_element().lstrip("+~").startswith("hydra")
    ]
    given = {item.key_or_group for item in task}
    trials = []
    for arm in arms:
        own = [item for item in parse(arm) if item.key_or_group not in given]
        trials += [trial for batch in BasicSweeper.split_arguments([*own, *task], None) for trial in batch]
    return trials


def probes(overrides: Sequence[str]) -> list[list[str]]:
    """Returns trials that try each value of a sweep once, and both ends of an interval: not their combinations.

    Args:
        overrides: What stands behind `python -m harness`, without flags.

    Raises:
        UserError: An override can not be read.
    """
    swept = _swept_values(overrides)
    fixed = [item for item in grid(overrides)[0] if item.partition("=")[0] not in swept]
    base = {key: values[0] for key, values in swept.items()}
    points = [base] + [base | {key: value} for key, values in swept.items() for value in values[1:]]
    return [[*fixed, *(f"{key}={value}" for key, value in point.items())] for point in points]


def _swept_values(overrides: Sequence[str]) -> dict[str, list[str]]:
    values = {}
    for item in parse(overrides):
        if item.is_sweep_override():
            sweep = item.value()
            ends = [str(sweep.start), str(sweep.end)] if isinstance(sweep, IntervalSweep) else None
            values[item.get_key_element()] = ends or [str(value) for value in item.sweep_string_iterator()]
    return values


class _Options:
    """What Hydra's grammar asks a loader of configs for: the options that a `glob(...)` chooses from."""

    def get_group_options(self, group_name: str, *args: Any, **kwargs: Any) -> list[str]:
        return registry.options(group_name)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parses overrides by Hydra's grammar.

    Raises:
        UserError: One can not be read.
    """
    options: Any = _Options()
    try:
        return OverridesParser.create(config_loader=options).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise explain(error, overrides) from error


def _which(trials: Sequence[Sequence[str]], of: int) -> str:
    if of == 1:
        return ""
    others = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
    return f"in the trial {' '.join(trials[0])}{others}: "


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


def explain(error: Exception, overrides: Sequence[str]) -> UserError:
    """Says what the user typed, what is wrong with it and what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = sorted(error.options) if error.options else registry.options(group)
        typed = f"{group or '--config-name'}={option}"
        return UserError(f"{typed}: no such option.{_did_you_mean(option, known)} Known: {', '.join(known)}")
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        remedy = f" Quote a value that holds # or :, {key}=\"'{value}'\"." if value else ""
        return UserError(f"{error.override}: not of the form key=value ({str(error).splitlines()[0]}).{remedy}")
    if isinstance(error, OmegaConfBaseException):
        return UserError(f"{error.full_key}: {str(error).splitlines()[0]}")
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        key = str(cause.full_key)
        if isinstance(cause, ValidationError):
            return _explain_value(key, cause)
        if key.startswith("hydra."):
            known = sorted(map(str, cause.parent_node or ()))
            return _no_such_key(_typed(key, overrides), f"{key.rpartition('.')[0]}.", str(cause.key), known)
        return _explain_key(key, overrides)
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
    return _no_such_key(_typed(key, overrides), f"{parent}." if parent else "", leaf, known)


def _typed(key: str, overrides: Sequence[str]) -> str:
    """Returns the override that names a key; the key alone if nobody typed it, and it stands in a YAML file."""
    return next((item for item in overrides if key in item), key)


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


def _refuse_numbers_for_truth(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses `trainer.probe=7`, which OmegaConf takes for true."""
    for item in parse(overrides):
        number = item.value()
        if type(number) is int and number not in (0, 1) and OmegaConf.select(cfg, item.key_or_group) is True:
            raise reject(item.key_or_group, number, f"expected {type_text(bool)}")


def _refuse_nested(key: str, value: Any, hint: Any) -> None:
    """Refuses `[{a: b}]` for a list of strings: OmegaConf checks the types of values there, not of containers."""
    members = get_args(next((item for item in get_args(hint) if get_origin(item)), hint))
    if not isinstance(value, DictConfig | ListConfig) or not members or members[-1] is Any or get_origin(members[-1]):
        return
    inner = value.values() if isinstance(value, DictConfig) else value
    if any(isinstance(item, DictConfig | ListConfig) for item in inner):
        raise reject(key, value, f"expected {type_text(hint)}")


def _refuse_unknown_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Refuses what `+tuner.rnak=4` adds: OmegaConf lets it pass and only a slotted dataclass would trip over it."""
    known = _field_types(OmegaConf.get_type(cfg))
    for key in map(str, cfg):
        if known and key not in known:
            raise _no_such_key(f"{prefix}{key}={cfg[key]}", prefix, key, sorted(known))
        if OmegaConf.is_missing(cfg, key):
            continue
        value = cfg[key]
        if known:
            _refuse_nested(f"{prefix}{key}", value, known[key])
        if isinstance(value, DictConfig):
            _refuse_unknown_keys(value, f"{prefix}{key}.")
