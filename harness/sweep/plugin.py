"""Options of `hydra/launcher` and `hydra/sweeper`; the classes behind them are given to Hydra where a sweep starts.

Hydra takes plugins from modules below `hydra_plugins` alone, and imports them by name. A package of that name would be
an eighth folder beside conf/ and harness/, so `adopt` makes its module where a sweep starts.
"""

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

_MODULE = "hydra_plugins.harness"


@dataclass(kw_only=True, slots=True)
class SerialConf:
    """`hydra/launcher=serial`: one trial after the other, each with the console and the whole machine."""

    _target_: str = f"{_MODULE}.SerialLauncher"
    memory_gib: float | None = None
    """GiB of host memory (private pages of all its processes together) at which a trial is killed; null for no limit.
    Measured twice a second."""


@dataclass(kw_only=True, slots=True)
class PoolConf:
    """`hydra/launcher=pool`: trials side by side, each with its own GPUs or its share of the cores."""

    _target_: str = f"{_MODULE}.PoolLauncher"
    jobs: int | None = None
    """Trials side by side. null: as many as have GPUs of their own; on the CPU a core for each process, 8 at most."""
    per_gpu: int = 1
    """Trials that may share a GPU."""
    memory_gib: float | None = None
    """As for serial."""


@dataclass(kw_only=True, slots=True)
class GridConf:
    """`hydra/sweeper=grid`: every combination of the values given, of every arm of a study."""

    _target_: str = f"{_MODULE}.GridSweeper"


for _group, _name, _node in (
    ("hydra/launcher", "serial", SerialConf),
    ("hydra/launcher", "pool", PoolConf),
    ("hydra/sweeper", "grid", GridConf),
):
    ConfigStore.instance().store(group=_group, name=_name, node=_node, provider="harness")


def adopt(plugin: type[Plugin]) -> None:
    """Gives a class to Hydra under the name that the options above call it by."""
    try:
        parent = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:  # no other plugin is installed
        parent = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        parent.__path__ = []
    module = sys.modules.setdefault(_MODULE, ModuleType(_MODULE))
    setattr(parent, _MODULE.rpartition(".")[2], module)
    setattr(module, plugin.__name__, plugin)
    plugin.__module__ = _MODULE
    Plugins.instance().register(plugin)
