"""`hydra/sweeper=optuna`: proposes trials by Optuna (1907.10902), ends those that lag behind, and goes on where it was.

TPE (Bergstra et al. 2011), CMA-ES (1604.00772) or random; ASHA (1810.05934) or Hyperband (1603.06560) on the metric
that a trial's metrics.jsonl shows while it runs. The journal `optuna.log` in the sweep folder holds every proposal: a
search that was killed takes up the trials that were running, with their checkpoints. Trials are processes on frozen
configs, as with any sweeper, so the ranks of one never see another's point.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from harness.config import config_hash
from harness.errors import UserError, ends_on_mistake
from harness.experiment.launch import Task
from harness.logging.metrics import read
from harness.sweep.crew import Crew
from harness.sweep.launcher import PoolLauncher
from harness.sweep.plugin import Pruner, adopt
from harness.sweep.proposal import Options, make_pruner, make_sampler, open_study
from harness.sweep.space import split
from harness.sweep.trial import Trial
from harness.trainer.standard import badness

if TYPE_CHECKING:
    import optuna

_LOOK_S = 1.0
"""Between looks at the metrics of running trials."""


@dataclass(slots=True)
class _Running:
    trial: Trial
    proposal: "optuna.Trial"
    reported: int = 0
    """Step of the last value that Optuna knows."""


class OptunaSweeper(Sweeper):
    """Asks, runs and tells."""

    def __init__(self, **options: Any) -> None:
        """Args: those of `OptunaConf`, which has checked their types."""
        self.options = Options(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Makes the launcher, whose trials it starts itself."""
        assert isinstance(task_function, Task)
        with ends_on_mistake():
            self.options.check()
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )
            if not isinstance(launcher, PoolLauncher):
                raise UserError("hydra/sweeper=optuna: needs hydra/launcher=serial or pool, to end a trial early")
        self.task, self.config, self.crew = task_function, config, launcher.crew

    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until there are as many as were asked for."""
        self.task.begun = True
        OmegaConf.save(self.config, self.crew.sweep.path / "multirun.yaml")
        with ends_on_mistake():
            Search(self.crew, self.task, self.options, arguments).run()


@dataclass(slots=True)
class Search:
    """One search, from its first proposal, or the last it had made, to its end."""

    crew: Crew
    task: Task
    options: Options
    arguments: list[str]
    running: dict[str, _Running] = field(default_factory=dict, init=False)
    """By identity."""
    waiting: list[_Running] = field(default_factory=list, init=False)
    """For a place, or for a process of an earlier start that is still ending."""
    _looked: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Runs it.

        Raises:
            UserError: Nothing that can be sampled is asked for.
            KeyboardInterrupt: A signal asked for an end.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fixed, space = split(self.arguments)
        first = next(iter(self.task.checked.values()))
        monitor = first.trainer.monitor
        objectives = {key: way.name for key, way in self.options.objectives.items()}
        objectives = objectives or {monitor: "minimize" if badness(monitor, 1.0) > 0 else "maximize"}
        study = open_study(
            self.crew.sweep.path / "optuna.log",
            f"{sorted(space.items())} {objectives} {config_hash(first)}",
            list(objectives.values()),
            make_pruner(self.options),
        )
        self._begin(study)
        unfinished = [item for item in study.trials if not item.state.is_finished()]
        while self.running or self.waiting or unfinished or len(study.trials) < self.options.trials:
            self.waiting = [entry for entry in self.waiting if not self._starts(entry)]
            while self.crew.has_room and not self.waiting and (unfinished or len(study.trials) < self.options.trials):
                if unfinished:
                    frozen = unfinished.pop(0)
                    proposal = optuna.Trial(study, frozen._trial_id)
                    if frozen.params.keys() != space.keys():  # killed between the proposal of two keys
                        study.tell(proposal, state=optuna.trial.TrialState.FAIL)
                        continue
                else:
                    study.sampler = make_sampler(self.options, len(study.trials))
                    proposal = study.ask(space)
                overrides = [*fixed, *(f"{key}={_spell(value)}" for key, value in proposal.params.items())]
                self._start(study, proposal, overrides, objectives)
            for ended in self.crew.wait():
                entry = self.running.pop(ended.trial.identity)
                self._tell(study, entry.proposal, entry.trial, objectives)
            self._look()
        self._say_best(study, objectives)

    def _begin(self, study: "optuna.Study") -> None:
        over = sum(item.state.is_finished() for item in study.trials)
        self.crew.divide(list(self.task.checked.values()), max(1, self.options.trials - over))
        counts = f"{self.options.trials} trials, {over} over, {self.crew.places.jobs} at a time"
        print(f"{self.crew.sweep.path}: {counts}", flush=True)

    def _start(
        self, study: "optuna.Study", proposal: "optuna.Trial", overrides: list[str], objectives: dict[str, str]
    ) -> None:
        """Starts a proposal, or takes the result of the same trial if there is one."""
        import optuna

        (trial,) = self.crew.plan([overrides], proposal.number)
        self.crew.progress.total = self.options.trials
        if trial is None or trial.identity in self.running:
            study.tell(proposal, state=optuna.trial.TrialState.FAIL)
        elif trial.is_final:
            self._tell(study, proposal, trial, objectives)
        elif not self._starts(entry := _Running(trial, proposal)):
            self.waiting.append(entry)

    def _starts(self, entry: _Running) -> bool:
        if self.crew.start(entry.trial):
            self.running[entry.trial.identity] = entry
            return True
        return False

    def _tell(self, study: "optuna.Study", proposal: "optuna.Trial", trial: Trial, objectives: dict[str, str]) -> None:
        import optuna

        if trial.state == "preempted":  # goes on at the next start
            return
        summary = trial.run.read_summary()
        found = [(summary.get("val") or {}).get(key, summary.get(key)) for key in objectives]
        values = [float(value) for value in found if isinstance(value, int | float) and math.isfinite(value)]
        if trial.state == "pruned":
            study.tell(proposal, state=optuna.trial.TrialState.PRUNED)
        elif trial.state == "completed" and len(values) == len(objectives):
            study.tell(proposal, values)
        else:
            study.tell(proposal, state=optuna.trial.TrialState.FAIL)

    def _look(self) -> None:
        """Tells Optuna what running trials have measured, and ends those that it gives up."""
        if self.options.pruner is Pruner.none or time.monotonic() < self._looked + _LOOK_S:
            return
        self._looked = time.monotonic()
        for entry in self.running.values():
            metric = entry.trial.config.trainer.monitor
            for step, value in _measured(entry.trial.run.metrics, metric, entry.reported):
                entry.proposal.report(value, step)
                entry.reported = step
                if entry.proposal.should_prune():
                    self.crew.prune(entry.trial, f"{self.options.pruner.name}: {metric} {value:.4f} at step {step}")

    def _say_best(self, study: "optuna.Study", objectives: dict[str, str]) -> None:
        best = [item for item in study.best_trials if item.values is not None]
        for item in best:
            figures = ", ".join(f"{key} {value:.4g}" for key, value in zip(objectives, item.values, strict=True))
            point = " ".join(f"{key}={_spell(value)}" for key, value in item.params.items())
            print(f"{'best' if len(objectives) == 1 else 'not dominated'}: {point}: {figures}", flush=True)


def _spell(value: Any) -> str:
    """Spells a proposed value; four digits are enough for a folder's name, and for a learning rate."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measured(path: Path, metric: str, after: int) -> list[tuple[int, float]]:
    if not path.is_file():
        return []
    rows = [(row["step"], row[metric]) for row in read(path) if row["step"] > after and metric in row]
    return [(step, value) for step, value in rows if math.isfinite(value)]


adopt(OptunaSweeper)
