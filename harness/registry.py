"""Binds each implementation's typed config to its builder, and offers the configs to Hydra as schemas.

An implementation is a module `harness/<group>/<name>.py` with a `@dataclass(kw_only=True, slots=True)` config, whose
field `name` defaults to the module's name, and one builder decorated with `@register(group, Config)`. The registry
stores the dataclass in Hydra's ConfigStore as `schema/<group>/<name>`; `conf/<group>/<name>.yaml` begins with it.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from harness.errors import UserError

GROUPS = (
    "model",
    "tuner",
    "freeze",
    "optim",
    "data",
    "memory",
    "memory/quant",
    "memory/strategy",
    "logging",
    "trainer",
)
"""Config groups that hold implementations, in the order in which a run builds them; a nested one behind its parent.

The config of a nested group is a field of its parent's, `memory.strategy`, and its files lie in a folder below.
"""

_PACKAGE = Path(__file__).parent
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (path / "config.yaml").is_file())
"""The folder of Hydra configs: inside the package in an installed wheel, beside it in a checkout."""

Builder = TypeVar("Builder", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One registered implementation."""

    group: str
    name: str
    config: type
    build: Callable[..., Any]


_entries: dict[tuple[str, str], Entry] = {}


def register(group: str, config: type) -> Callable[[Builder], Builder]:
    """Registers a builder under the name that its config's field `name` defaults to.

    Args:
        group: Config group, `tuner` or nested as `memory/quant`.
        config: Dataclass with slots (without them Hydra accepts `+tuner.rnak=4` in silence).

    Raises:
        TypeError: The config is no dataclass with slots and a default for `name`, or the name is taken.
    """
    if not dataclasses.is_dataclass(config) or "__slots__" not in vars(config):
        raise TypeError(f"{config.__name__} must be a @dataclass(kw_only=True, slots=True)")
    name = {field.name: field.default for field in dataclasses.fields(config)}.get("name")
    if not isinstance(name, str):
        raise TypeError(f"{config.__name__} needs a field `name: str` with a default")

    def bind(build: Builder) -> Builder:
        if (group, name) in _entries:
            raise TypeError(f"{group}={name} is registered twice")
        _entries[group, name] = Entry(group, name, config, build)
        schema = _schema(group, config)
        ConfigStore.instance().store(group=f"schema/{group}", name=name, node=schema, package=key_of(group))
        return build

    return bind


def _schema(group: str, config: type) -> DictConfig:
    """Returns a dataclass's schema in which `key={a: 1}` adds to a map, whose keys are the user's own.

    A field that holds a nested group is open to every implementation of that, not to its default alone.
    """
    schema = OmegaConf.structured(config)
    for item in dataclasses.fields(config):
        if f"{group}/{item.name}" in GROUPS:
            schema[item.name] = MISSING
        if get_origin(item.type) is dict:
            OmegaConf.set_struct(schema[item.name], False)
    return schema


def key_of(group: str) -> str:
    """Returns the key at which the config of a group stands: `memory.strategy` of `memory/strategy`."""
    return group.replace("/", ".")


def load() -> None:
    """Imports every implementation that `conf/` names, so that its schema is known to Hydra.

    Only modules with a YAML file of the same name are imported: the others hold what builders import when they run
    (torch, peft, lightning), which keeps `--help` and `--cfg` fast.
    """
    for group in GROUPS:
        for module in sorted((_PACKAGE / group).glob("*.py")):
            if (CONF / group / f"{module.stem}.yaml").is_file():
                importlib.import_module(f"harness.{key_of(group)}.{module.stem}")


def get(group: str, name: str) -> Entry:
    """Returns the entry, or raises UserError with the names known in that group."""
    try:
        return _entries[group, name]
    except KeyError:
        known = ", ".join(names(group)) or "none"
        raise UserError(f"{key_of(group)}.name={name}: no such implementation; known: {known}") from None


def names(group: str) -> list[str]:
    """Names of the implementations of a group, sorted."""
    return sorted(entry.name for entry in _entries.values() if entry.group == group)


def options(group: str) -> list[str]:
    """What can stand behind `<group>=` on the command line: implementations and presets, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def build(group: str, config: Any, *args: Any) -> Any:
    """Calls the builder that belongs to a config object of a group."""
    return get(group, config.name).build(config, *args)
