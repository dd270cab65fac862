"""The typed config of one run: its groups, the rules across them, and its frozen copy on disk.

Needs neither torch nor any optional package, so that a wrong command line fails in well under a second.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import registry
from harness.errors import UserError, reject
from harness.yaml_file import read_yaml

VOLATILE = (
    "logging",
    "memory.strategy.copy_engines",
    "memory.strategy.prefetch_bucket_size",
    "memory.strategy.keep_trained",
    "memory.strategy.param_persistence_threshold",
    "trainer.resume",
    "trainer.force_resume",
    "trainer.async_save",
    "trainer.on_save_error",
    "trainer.ddp_timeout_s",
    "trainer.spike_mads",
    "trainer.watchdog_s",
    "trainer.log_every_steps",
    "trainer.measure_peak",
    "trainer.probe",
    "trainer.debug_syncs",
    "trainer.profile_steps",
    "data.workers",
    "data.prefetch",
    "data.index_workers",
    "data.cache_dir",
    "data.vit_cache.folder",
    "data.vit_cache.max_gib",
)
"""Keys that change neither the trained weights nor the metrics, and so are no part of a run's identity."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run. Each group holds the config object of the implementation that the command line chose."""

    model: Any = MISSING
    tuner: Any = MISSING
    freeze: Any = MISSING
    optim: Any = MISSING
    data: Any = MISSING
    memory: Any = MISSING
    logging: Any = MISSING
    trainer: Any = MISSING
    seed: int = 42
    """Seed of initialisation, dropout and data order."""

    def __post_init__(self) -> None:
        """Checks the rules that span groups; the range of a single key is its own dataclass's matter."""
        if not 0 <= self.seed < 2**32:
            raise reject("seed", self.seed, "must be 0 or more, and below 2**32")
        self._check_optim()
        self._check_tuner(getattr(self.tuner, "is_full", False))
        self._check_steps()
        self._check_strategy()

    def _check_optim(self) -> None:
        # With exceptions that train, only the model tells what is frozen; the parameter groups check it then.
        for component in () if self.freeze.overrides() else self.freeze.frozen:
            rate = getattr(self.optim, f"{component.name}_lr", None)
            if rate is not None:
                raise reject(f"optim.{component.name}_lr", rate, f"the freeze policy keeps {component.name} frozen")
        if getattr(self.optim, "per_parameter", False) and self.trainer.on_nonfinite.name == "skip":
            remedy = "optim.per_parameter updates before the whole gradient is known; set stop"
            raise reject("trainer.on_nonfinite", "skip", remedy)
        for key in ("accumulate", "devices", "nodes") if getattr(self.optim, "per_parameter", False) else ():
            if getattr(self.trainer, key) > 1:
                remedy = "optim.per_parameter updates before the gradients of the others are added; set 1"
                raise reject(f"trainer.{key}", getattr(self.trainer, key), remedy)

    def _check_tuner(self, is_full: bool) -> None:
        tuner = self.tuner.name
        if self.optim.full_only and not is_full:
            remedy = f"trains the model's own weights, and tuner={tuner} is an adapter; set tuner=full"
            raise reject("optim", self.optim.name, remedy)
        if self.model.new_special_tokens and not self.model.train_new_tokens and not is_full:
            remedy = f"tuner={tuner} leaves the embedding alone, and its export would lack new tokens; set true"
            raise reject("model.train_new_tokens", "false", remedy)
        if getattr(self.tuner, "exports_model", False) and getattr(self.memory, "changes_base", False):
            remedy = f"tuner={tuner} exports the whole model, and its frozen weights would not be the checkpoint's"
            raise reject("memory", self.memory.name, f"{remedy}; use memory=standard, or an adapter")
        reads_gradients = getattr(self.tuner, "reads_gradients", False)
        if reads_gradients and self.optim.rewrites_gradients:
            remedy = f"leaves no gradients behind its step, which tuner={tuner} reads; use optim=adamw"
            raise reject("optim", self.optim.name, remedy)
        if reads_gradients and self.memory.strategy.splits_updates:
            remedy = f"leaves no whole gradients, which tuner={tuner} reads; use {self.memory.strategy.unsplit}"
            raise reject("memory/strategy", self.memory.strategy.name, remedy)
        if self.memory.quant.changes_base:
            self._check_quant(is_full)
        if self.freeze.full and is_full:
            full = [item.name for item in self.freeze.full]
            raise reject("freeze.full", full, f"tuner={tuner} trains all that is not frozen in full; leave it out")

    def _check_strategy(self) -> None:
        strategy = self.memory.strategy
        name = f"memory/strategy={strategy.name}"
        if strategy.saves_parts and self.optim.skips_parameters:
            remedy = f"has state for other layers each time, of which {name} saves parts; use memory/strategy=ddp"
            raise reject("optim", self.optim.name, remedy)
        if strategy.splits_updates and not self.optim.elementwise:
            remedy = f"looks at whole matrices or gradients, and {name} splits them; use adamw, or {strategy.unsplit}"
            raise reject("optim", self.optim.name, remedy)
        if strategy.flattens and self.optim.averages:
            remedy = f"keeps an average in the place of weights, which {name} updates in copies; use fsdp2 or ddp"
            raise reject("optim", self.optim.name, remedy)
        if (strategy.sharded or strategy.flattens) and getattr(self.memory, "changes_base", False):
            raise reject("memory", self.memory.name, f"{name} can not hold weights of 8 bits; use memory/strategy=ddp")
        if self.memory.sequence_parallel > 1:
            self._check_sequence_parallel()
        if strategy.saves_parts and self.trainer.async_save:
            remedy = (
                f"all ranks write their parts of a checkpoint under {name}, with exchanges in between; leave it out"
            )
            raise reject("trainer.async_save", "true", remedy)
        if strategy.flattens and self.trainer.on_nonfinite.name == "skip":
            raise reject("trainer.on_nonfinite", "skip", f"{name} takes its steps by itself; use fsdp2 or ddp")
        if not strategy.scales_fp16 and self.memory.precision.name == "fp16":
            raise reject("memory.precision", "fp16", f"{name} has no scaler for its gradients; use bf16")

    def _check_sequence_parallel(self) -> None:
        size, processes, strategy = self.memory.sequence_parallel, self.trainer.world_size, self.memory.strategy
        key = "memory.sequence_parallel"
        if not strategy.shares_sequences:
            raise reject(key, size, f"memory/strategy={strategy.name} deals micro-batches to all processes; use ddp")
        if processes % size:
            remedy = f"{processes} processes do not make groups of it; set trainer.devices to a multiple"
            raise reject(key, size, remedy)
        for name in ("oom_replay", "probe"):
            if getattr(self.trainer, name):
                remedy = f"{key}={size} makes processes wait in each layer for one that fails; leave it out"
                raise reject(f"trainer.{name}", "true", remedy)
        if self.data.on_error.name == "skip":
            remedy = f"{key}={size}: one process alone may fail to read an image, and all need the same rows; set raise"
            raise reject("data.on_error", "skip", remedy)
        if reason := getattr(self.tuner, "needs_whole_rows", None):
            raise reject("tuner", self.tuner.name, f"{reason}, of which a process has a part under {key}={size}")

    @property
    def data_ranks(self) -> int:
        """Groups of processes with micro-batches of their own."""
        return self.trainer.world_size // self.memory.sequence_parallel

    def _check_quant(self, is_full: bool) -> None:
        tuner, quant = self.tuner.name, self.memory.quant.name
        if getattr(self.memory, "changes_base", False):
            raise reject("memory/quant", quant, f"memory={self.memory.name} holds the same weights otherwise: give one")
        if is_full:
            raise reject("memory/quant", quant, f"tuner={tuner} trains weights, and quantised ones can not; use none")
        if getattr(self.tuner, "exports_model", False):
            remedy = f"tuner={tuner} as it is set exports the whole model, whose weights would not be the checkpoint's"
            raise reject("memory/quant", quant, f"{remedy}; use none, or an adapter")
        if reason := getattr(self.tuner, "needs_plain_base", None):
            raise reject("memory/quant", quant, f"tuner={tuner} {reason}; use none")
        strategy, storage = self.memory.strategy, getattr(self.memory.quant, "storage", None)
        if strategy.flattens:
            remedy = f"memory/strategy={strategy.name} casts all that the model holds, the scales of bits too"
            raise reject("memory/quant", quant, f"{remedy}; use ddp or fsdp2")
        if strategy.sharded and storage is not None and storage.name != "uint8":
            remedy = f"memory/strategy={strategy.name} may cast bits that are held as a number; use uint8"
            raise reject("memory.quant.storage", storage.name, remedy)

    def _check_steps(self) -> None:
        if self.data.max_tokens_per_batch is not None and self.trainer.batch_size != 1:
            raise reject(
                "trainer.batch_size", self.trainer.batch_size, "data.max_tokens_per_batch sizes batches; set 1"
            )
        if getattr(self.data, "streaming", False) and self.trainer.max_steps is None:
            raise reject("trainer.max_steps", "null", "a stream has no end (data.streaming=true): give the steps")
        if self.trainer.monitor == "val/exact_match" and not self.data.generation.enabled:
            raise reject(
                "trainer.monitor", self.trainer.monitor, "is measured by generation: set data.generation.enabled=true"
            )


ConfigStore.instance().store(group="schema", name="run", node=RunConfig)


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Turns a composed config into checked objects.

    Raises:
        UserError: A value is missing, out of range, at odds with another group, or refers to nothing.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]} is not set: give {missing[0]}=... on the command line")
        absent = [group for group in registry.GROUPS if OmegaConf.select(cfg, registry.key_of(group)) is None]
        if absent:
            raise reject(registry.key_of(absent[0]), "null", f"choose one with {absent[0]}=...")
        run = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(run, RunConfig)
    return run


def save(cfg: DictConfig, path: Path) -> None:
    """Writes the resolved config, from which `load` makes the same RunConfig again."""
    path.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")


def load(path: Path) -> RunConfig:
    """Reads a config written by `save`, checked against the schemas as they are now.

    Raises:
        UserError: The file is missing or damaged, or a key or value in it does not suit this version.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run folder holds a config.yaml")
    stored = read_yaml(path)
    try:
        return to_run_config(_typed(stored))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: {error.full_key} does not fit this version of the harness ({reason})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _typed(stored: DictConfig | ListConfig) -> DictConfig:
    """Merges a stored config into the schemas of the implementations that it names."""
    if not isinstance(stored, DictConfig):
        raise UserError("holds a list, and so no config of a run")
    typed = OmegaConf.structured(RunConfig)
    for group in registry.GROUPS:
        key = registry.key_of(group)
        # A run from before a nested group was there has what that group is by default.
        if (node := OmegaConf.select(stored, key)) is not None:
            name = node.get("name") if isinstance(node, DictConfig) else None
            if not isinstance(name, str):
                raise reject(f"{key}.name", name, "not the name of an implementation")
            OmegaConf.update(typed, key, OmegaConf.structured(registry.get(group, name).config), merge=False)
    merged = OmegaConf.merge(typed, stored)
    assert isinstance(merged, DictConfig)
    return merged


def to_plain(run: RunConfig) -> dict[str, Any]:
    """Returns the config as nested dicts, lists, strings and numbers (enums by name)."""
    plain = OmegaConf.to_container(OmegaConf.structured(run), resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def identity(run: RunConfig) -> dict[str, Any]:
    """Returns the config as flat `group.key` pairs, without what changes no result."""
    return {key: value for key, value in flatten(to_plain(run)).items() if not is_volatile(key)}


def is_volatile(key: str) -> bool:
    """Says whether a dotted key changes no result."""
    return any(key == volatile or key.startswith(volatile + ".") for volatile in VOLATILE)


def config_hash(run: RunConfig) -> str:
    """Twelve hex digits that name what a run computes: equal for equal configs, whatever its loggers and paths."""
    text = json.dumps(identity(run), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
