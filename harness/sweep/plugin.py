"""Options of `hydra/launcher` and `hydra/sweeper`; the classes behind them are given to Hydra where a sweep starts.

Hydra takes plugins from modules below `hydra_plugins` alone, and imports them by name. A package of that name would be
an eighth folder beside conf/ and harness/, so `adopt` makes its module where a sweep starts.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import ModuleType
from typing import get_origin

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin
from omegaconf import DictConfig, OmegaConf

from harness.errors import reject

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
    warm: bool = False
    """Trials of one process follow each other in a process, which keeps packages, the CUDA context, base weights that
    did not change, and compiled code. One that does not complete ends its process; the next gets a fresh one. false: a
    process for each, which shares nothing."""
    memory_gib: float | None = None
    """As for serial."""


@dataclass(kw_only=True, slots=True)
class SlurmConf:
    """`hydra/launcher=slurm`: each trial a job on one node, those that start together as one array."""

    _target_: str = f"{_MODULE}.SlurmLauncher"
    partition: str | None = None
    """As in sbatch, like all that follow; null leaves it to the cluster."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    time: str | None = None
    """Limit of a job, `HH:MM:SS` or `D-HH`. Ahead of it the trial saves and is requeued."""
    gpus: int | None = None
    """GPUs of a job; null: trainer.devices of its trial, none with trainer.accelerator=cpu."""
    cpus: int | None = None
    """Cores of a job."""
    memory_gib: float | None = None
    """Host memory of a job."""
    mail_user: str | None = None
    """Where mail goes."""
    mail_type: str | None = None
    """When: `END,FAIL`."""
    dependency: str | None = None
    """Jobs to wait for: `afterok:4711`."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the trial, as they are: `module load cuda`, `source env/bin/activate`."""
    options: list[str] = field(default_factory=list)
    """Further options of sbatch: `--constraint=h100`."""
    max_parallel: int | None = None
    """Trials that run at a time, at most."""
    requeue: bool = True
    """Put a job that is preempted, or whose time is nearly over, back into the queue, to go on from its checkpoint."""
    signal_seconds: int = 120
    """How long before its time limit a job is told to save."""
    poll_seconds: float = 5.0
    """Between two questions to SLURM."""


@dataclass(kw_only=True, slots=True)
class RayConf:
    """`hydra/launcher=ray`: each trial a task of a Ray cluster, on whichever node has room."""

    _target_: str = f"{_MODULE}.RayLauncher"
    address: str | None = None
    """Of the cluster, as in `ray.init`; null: RAY_ADDRESS, or the one of this machine; local: one for this sweep."""
    gpus: float | None = None
    """GPUs of a trial, less than 1 to share one; null: trainer.devices, none with trainer.accelerator=cpu or in a
    cluster without GPUs."""
    cpus: int | None = None
    """Cores of a trial; null: one for each of its processes."""
    memory_gib: float | None = None
    """Host memory that a node must have left for a trial."""
    resources: dict[str, float] = field(default_factory=dict)
    """Further ones of the cluster: `{accelerator_type:H100: 0.001}`."""
    max_parallel: int | None = None
    """Trials that run at a time, at most."""
    retries: int = 3
    """How often a trial whose node or worker is lost is started again, to go on from its checkpoint."""


@dataclass(kw_only=True, slots=True)
class GridConf:
    """`hydra/sweeper=grid`: every combination of the values given, of every arm of a study."""

    _target_: str = f"{_MODULE}.GridSweeper"


class Sampler(Enum):
    """Who proposes the next trial."""

    tpe = "tpe"
    cmaes = "cmaes"
    random = "random"


class Pruner(Enum):
    """Who ends a trial that lags behind the others at the same step."""

    none = "none"
    asha = "asha"
    hyperband = "hyperband"


class Direction(Enum):
    """What is better."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass(kw_only=True, slots=True)
class OptunaConf:
    """`hydra/sweeper=optuna`: each trial is proposed from the values of those before it, kept in the sweep folder."""

    _target_: str = f"{_MODULE}.OptunaSweeper"
    trials: int = 20
    """Trials in all, those of starts before this one, failed and pruned ones included."""
    sampler: Sampler = Sampler.tpe
    """tpe (2011, Bergstra), which takes choices and several objectives; cmaes for numbers alone; random."""
    startup: int = 10
    """Random trials before tpe proposes."""
    pruner: Pruner = Pruner.none
    """asha (1810.05934) or hyperband (1603.06560), on `trainer.monitor` after each validation."""
    min_steps: int = 1
    """Optimiser steps before a trial may be pruned."""
    reduction: int = 3
    """One of so many trials goes on at each rung."""
    objectives: dict[str, Direction] = field(default_factory=dict)
    """Keys of summary.json or of its `val`, as {val/loss: minimize, trainable_parameters: minimize}; empty:
    trainer.monitor alone."""
    seed: int = 0
    """Of the proposals."""


def _open_maps(config: type) -> DictConfig:
    """Returns a schema in which `{a: 1}` adds to a map, whose keys are the user's own."""
    schema = OmegaConf.structured(config)
    for item in fields(config):
        if get_origin(item.type) is dict:
            OmegaConf.set_struct(schema[item.name], False)
    return schema


for _group, _name, _node in (
    ("hydra/launcher", "serial", SerialConf),
    ("hydra/launcher", "pool", PoolConf),
    ("hydra/launcher", "slurm", SlurmConf),
    ("hydra/launcher", "ray", RayConf),
    ("hydra/sweeper", "grid", GridConf),
    ("hydra/sweeper", "optuna", OptunaConf),
):
    ConfigStore.instance().store(group=_group, name=_name, node=_open_maps(_node), provider="harness")


def check_positive(options: Mapping[str, float | None]) -> None:
    """Checks options of the launcher.

    Raises:
        UserError: One is 0 or less.
    """
    for key, value in options.items():
        if value is not None and value <= 0:
            raise reject(f"hydra.launcher.{key}", value, "must be more than 0")


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
