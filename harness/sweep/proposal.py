"""What Optuna gives a search: samplers, pruners, and the journal that a killed search goes on from."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, reject
from harness.sweep.plugin import Direction, Pruner, Sampler

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


@dataclass(kw_only=True, slots=True)
class Options:
    """As in `OptunaConf`, with its defaults."""

    trials: int
    sampler: Sampler
    startup: int
    pruner: Pruner
    min_steps: int
    reduction: int
    objectives: dict[str, Direction]
    seed: int

    def check(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: One is out of range, or a package is missing.
        """
        for package in ("optuna", *(["cmaes"] if self.sampler is Sampler.cmaes else [])):
            if find_spec(package) is None:
                remedy = "run pip install 'qwen3-vl-harness[optuna]'"
                raise UserError(f"hydra/sweeper=optuna: the package {package} is missing; {remedy}")
        for key, least in (("trials", 1), ("startup", 0), ("min_steps", 1), ("reduction", 2)):
            if getattr(self, key) < least:
                raise reject(f"hydra.sweeper.{key}", getattr(self, key), f"must be {least} or more")
        if len(self.objectives) > 1:
            for setting, none in ((self.pruner, Pruner.none), (self.sampler, Sampler.tpe)):
                if setting is not none and setting is not Sampler.random:
                    key = type(setting).__name__.lower()
                    raise reject(f"hydra.sweeper.{key}", setting.name, f"has one objective; use {none.name}")


def open_study(path: Path, meaning: str, directions: list[str], pruner: "BasePruner") -> "optuna.Study":
    """Opens what a search has found so far; none may be at it at the same time.

    Args:
        path: The journal.
        meaning: What is searched: another space, or another base, is another search in the same journal.
        directions: `minimize` or `maximize` for each objective.
        pruner: From `make_pruner`.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _cut_torn_end(path)
    free: Any = _Free()
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path), lock_obj=free)),
        study_name=hashlib.sha256(meaning.encode()).hexdigest()[:12],
        directions=directions,
        pruner=pruner,
        load_if_exists=True,
    )


def make_sampler(options: Options, number: int) -> "BaseSampler":
    """Returns a sampler for one proposal: its random state follows from the number, so a search that is started again
    does not propose its first trials once more.
    """
    from optuna.samplers import CmaEsSampler, RandomSampler, TPESampler

    seed = options.seed * 100_003 + number
    if options.sampler is Sampler.random:
        return RandomSampler(seed=seed)
    if options.sampler is Sampler.cmaes:
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return TPESampler(seed=seed, n_startup_trials=options.startup)


def make_pruner(options: Options) -> "BasePruner":
    """Returns what ends trials that lag behind."""
    from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner

    if options.pruner is Pruner.asha:
        return SuccessiveHalvingPruner(min_resource=options.min_steps, reduction_factor=options.reduction)
    if options.pruner is Pruner.hyperband:
        return HyperbandPruner(min_resource=options.min_steps, reduction_factor=options.reduction)
    return NopPruner()


def _cut_torn_end(path: Path) -> None:
    """Drops the line that a process was writing when it was killed; one appended to it could not be read."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class _Free:
    """A lock that is always free: the sweep's own keeps others out, and does not outlive a process that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
