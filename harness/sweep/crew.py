"""Plans, starts and awaits the trials of one sweep: what every launcher and every sweeper drives."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.config import RunConfig, config_hash, to_run_config
from harness.errors import EXIT_CRASH, EXIT_USER, UserError
from harness.experiment.end import write_end
from harness.experiment.launch import Task
from harness.sweep.console import Progress, outlook, resolution
from harness.sweep.folder import SweepFolder
from harness.sweep.places import Places, visible_gpus
from harness.sweep.pool import Ended
from harness.sweep.trial import Trial, prepare
from harness.trainer.standard import Accelerator

_POLL_S = 0.1
_AGAIN_S = 2.0
"""A signal so long after the first one is impatience, and kills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How the machine is shared, from the launcher's options."""

    jobs: int | None
    per_gpu: int = 1
    alone: bool = False
    """Each trial has the console and the whole machine."""
    elsewhere: bool = False
    """Trials run on other machines, where they may be stopped and started without a word from here."""


class Runner(Protocol):
    """What runs trials: `Pool` here, or a queue of a cluster."""

    def __len__(self) -> int:
        """Returns how many it has."""

    def start(self, trial: Trial, variables: Mapping[str, str], output: Path | None) -> None:
        """Starts a trial whose folder is ready."""

    def adopt(self, trial: Trial) -> bool:
        """Takes over a trial that an earlier start left running, and says whether there is one."""

    def poll(self) -> list[Ended]:
        """Returns the trials that ended since the last look."""

    def stop(self, number: int, trial: Trial | None = None) -> None:
        """Hands a signal to a trial, or to all."""

    def kill(self) -> None:
        """Kills all at once."""


@dataclass(slots=True)
class Crew:
    """The trials of one sweep and the processes that run them."""

    context: HydraContext
    config: DictConfig
    """Of the multirun, with Hydra's node."""
    task: Task
    share: Share
    pool: Runner
    sweep: SweepFolder
    trials: dict[str, Trial] = field(default_factory=dict, init=False)
    """By identity."""
    signals: list[tuple[int, float]] = field(default_factory=list, init=False)
    """Received from outside, with the time."""
    progress: Progress = field(init=False)
    places: Places = field(init=False)
    _gpus: dict[str, list[str]] = field(default_factory=dict, init=False)
    _pruned: dict[str, str] = field(default_factory=dict, init=False)
    """Why, by identity."""

    def __post_init__(self) -> None:
        self.sweep.lock()
        self.progress = Progress(shows_ends=not self.share.alone)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)
        if self.task.study is not None:
            self.task.study.write(self.sweep.study)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal from outside."""
        self.signals.append((number, time.monotonic()))

    def plan(self, asked: Sequence[Sequence[str]], first: int) -> list[Trial | None]:
        """Finds the trials that are there already, and numbers the others; None for one whose config is a mistake.

        Args:
            asked: Overrides of each.
            first: Number of the first.
        """
        known = {record.identity: record for record in self.sweep.records()}
        owners = {record.number: record.identity for record in known.values()}
        owners |= {trial.number: trial.identity for trial in self.trials.values()}
        planned: list[Trial | None] = []
        for wanted, overrides in enumerate(asked, start=first):
            try:
                run = self._checked(overrides, wanted)
            except UserError as error:
                print(f"error: in the trial {' '.join(overrides)}: {error}", file=sys.stderr, flush=True)
                self.task.codes.append(EXIT_USER)
                planned.append(None)
                continue
            identity = config_hash(run)
            if identity not in self.trials:
                record = known.get(identity)
                free = wanted if wanted not in owners else max(owners) + 1
                number, folder = (record.number, record.folder) if record is not None else (free, None)
                owners[number] = identity
                self.trials[identity] = Trial(
                    identity=identity, number=number, overrides=list(overrides), config=run, folder=folder
                )
                self._count_over(self.trials[identity])
            planned.append(self.trials[identity])
        self._write_plan()
        return planned

    def divide(self, configs: Sequence[RunConfig], number: int) -> None:
        """Divides the machine among trials like these.

        Args:
            configs: Of some or all of them.
            number: How many there will be.
        """
        if self.share.elsewhere:
            self.places = Places(jobs=max(1, self.share.jobs or number))
            return
        on_gpu = not self.share.alone and any(item.trainer.accelerator is not Accelerator.cpu for item in configs)
        devices = max((item.trainer.devices for item in configs), default=1)
        jobs = 1 if self.share.alone else self.share.jobs
        self.places = Places.of_machine(jobs, self.share.per_gpu, visible_gpus() if on_gpu else [], devices, number)

    def run(self, trials: Sequence[Trial]) -> None:
        """Runs those that are not over, side by side.

        Raises:
            KeyboardInterrupt: A signal asked for an end, and all have ended.
        """
        queue = deque(dict.fromkeys(trial.identity for trial in trials if not trial.is_final))
        self.divide([trial.config for trial in trials], len(queue))
        guess = self.task.study.trial_seconds if self.task.study is not None else None
        print(f"{self.sweep.path}: {outlook(trials, self.places.jobs, guess)}", flush=True)
        if (line := resolution(trials)) is not None:
            print(line, flush=True)
        while queue or len(self.pool):
            for identity in list(queue):
                trial = self.trials[identity]
                if trial.is_final or self.start(trial):  # by another process that had it
                    queue.remove(identity)
            self.wait()

    def start(self, trial: Trial) -> bool:
        """Starts a trial if there is a place for it, nobody asked for an end, and no process runs in its folder."""
        if self.signals:
            return False
        gpus = self.places.take(devices := trial.config.trainer.devices)
        if gpus is None:
            return False
        if self.pool.adopt(trial):
            self._gpus[trial.identity] = gpus
            self.progress.starts(trial, goes_on=True)
            return True
        if trial.state == "running":
            self.places.give_back(gpus)
            return False
        self._gpus[trial.identity] = gpus
        goes_on = trial.folder is not None and bool(trial.run.read_status())
        self._freeze(trial)
        self.progress.starts(trial, goes_on=goes_on)
        here = not (self.share.alone or self.share.elsewhere)
        variables = self.places.variables(gpus, devices) if here else {}
        self.pool.start(trial, variables, None if self.share.alone else trial.run.path / "console.log")
        return True

    def wait(self) -> list[Ended]:
        """Sleeps for a moment, and returns the trials that ended.

        Raises:
            KeyboardInterrupt: A signal asked for an end, and all have ended.
        """
        time.sleep(_POLL_S)
        ended = self.pool.poll()
        for item in ended:
            self.places.give_back(self._gpus.pop(item.trial.identity))
            self.task.codes.append(0 if self._was_pruned(item) else item.code)
            self.progress.ends(item)
        if self.signals:
            self._end_all()
        return ended

    def prune(self, trial: Trial, reason: str) -> None:
        """Ends a trial that is not worth its time; it does not count as failed."""
        if trial.identity not in self._pruned:
            self._pruned[trial.identity] = reason
            self.pool.stop(signal.SIGTERM, trial)

    @property
    def has_room(self) -> bool:
        """Whether another trial may start."""
        return not self.signals and len(self.pool) < self.places.jobs

    def _was_pruned(self, ended: Ended) -> bool:
        reason = self._pruned.pop(ended.trial.identity, None)
        if reason is None or ended.code == 0:
            return False
        write_end(ended.trial.run, ended.trial.config, "pruned", reason, time.monotonic() - ended.seconds)
        return True

    def _end_all(self) -> None:
        number, at = self.signals[0]
        if self.task.ended_by is None:
            self.task.ended_by = number
            print(f"{signal.Signals(number).name}: {len(self.pool)} trials are ending", flush=True)
            self.pool.stop(number)
        if self.signals[-1][1] - at > _AGAIN_S:
            self.pool.kill()
        if not len(self.pool):
            raise KeyboardInterrupt

    def _checked(self, overrides: Sequence[str], number: int) -> RunConfig:
        run = self.task.checked.get(tuple(overrides))
        return to_run_config(_split(self._compose(overrides, number))[0]) if run is None else run

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id = str(number)
            composed.hydra.job.num = number
        return composed

    def _freeze(self, trial: Trial) -> None:
        composed = self._compose(trial.overrides, trial.number)
        # Where the resolver of ${hydra:...} looks.
        HydraConfig.instance().set_config(composed)
        is_new = trial.folder is None
        path = self.sweep.path / str(composed.hydra.sweep.subdir)
        # A job that is requeued starts again by itself.
        prepare(trial, *_split(composed), path, restarts=self.share.elsewhere)
        if is_new:
            self.task.trials.append(trial.run.path)

    def _count_over(self, trial: Trial) -> None:
        """Counts a trial that was begun before, and is over or goes on."""
        if trial.folder is not None:
            self.task.trials.append(trial.run.path)
        if trial.is_final:
            self.progress.done += 1
        if trial.state in ("failed", "out_of_memory", "diverged"):
            by_user = str(trial.run.read_summary().get("error")).startswith("UserError")
            self.task.codes.append(EXIT_USER if by_user else EXIT_CRASH)

    def _write_plan(self) -> None:
        self.progress.total = len(self.trials)
        ordered = sorted(self.trials.values(), key=lambda trial: trial.number)
        listed = [
            {"identity": trial.identity, "number": trial.number, "overrides": trial.overrides} for trial in ordered
        ]
        self.sweep.write_plan(self.task.command, listed)


def open_sweep(config: DictConfig) -> SweepFolder:
    """Returns the folder that Hydra's config names."""
    HydraConfig.instance().set_config(config)
    return SweepFolder(Path(os.path.abspath(str(config.hydra.sweep.dir))))


def _split(composed: DictConfig) -> tuple[DictConfig, DictConfig]:
    """Returns the task's config and Hydra's node."""
    task = composed.copy()
    OmegaConf.set_readonly(task, False)
    with open_dict(task):
        del task["hydra"]
    return task, OmegaConf.masked_copy(composed, "hydra")
