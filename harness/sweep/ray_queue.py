"""Trials as tasks of a Ray cluster: the same face as `harness.sweep.pool`.

Ray finds a node with the GPUs and cores of a trial; the sweep folder has to be on a disk that all nodes see, for what a
trial came to is in its folder. A task whose node or worker is lost is started again and goes on from its checkpoint.
Tasks end with the launcher, and go on when it is started again.
"""

import logging
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, reject
from harness.library import Library
from harness.sweep import pool, ray_job
from harness.sweep.plugin import RayConf, check_positive
from harness.sweep.pool import Ended
from harness.sweep.trial import Trial
from harness.trainer.standard import Accelerator

_LIBRARY = Library("ray", "ray", "ray")


@dataclass(slots=True)
class _Job:
    trial: Trial
    task: Any
    """Ray's reference to the exit code."""
    started: float


@dataclass(slots=True)
class RayQueue:
    """The trials that Ray has."""

    options: RayConf
    _jobs: dict[str, _Job] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, trial: Trial, variables: Mapping[str, str], output: Path | None) -> None:
        """Makes a trial a task.

        Args:
            trial: The trial.
            variables: Not used: Ray says what a task gets.
            output: Not used: the task writes console.log into the trial's folder.

        Raises:
            UserError: The trial wants several nodes.
        """
        import ray

        if (nodes := trial.config.trainer.nodes) > 1:
            remedy = "a trial of hydra/launcher=ray has one node; start such runs by torchrun or srun (docs/launch.md)"
            raise reject("trainer.nodes", nodes, remedy)
        asked, trainer = self.options, trial.config.trainer
        gpus = asked.gpus
        if gpus is None:
            on_cpu = trainer.accelerator is Accelerator.cpu
            gpus = 0 if on_cpu or not ray.cluster_resources().get("GPU") else trainer.devices
        task = ray.remote(ray_job.run).options(
            name=trial.run.path.name,
            num_cpus=asked.cpus or trainer.devices,
            num_gpus=gpus,
            memory=None if asked.memory_gib is None else round(asked.memory_gib * 2**30),
            resources=dict(asked.resources),
            max_retries=asked.retries,
        )
        # The interpreter has the same path on every node.
        self._jobs[trial.identity] = _Job(
            trial, task.remote(list(pool.COMMAND), str(trial.run.path.absolute())), time.monotonic()
        )

    def adopt(self, trial: Trial) -> bool:
        """Takes over a trial that an earlier start left running: none outlives the launcher that started it."""
        return False

    def poll(self) -> list[Ended]:
        """Returns the trials that ended since the last look."""
        import ray

        jobs = {job.task: job for job in self._jobs.values()}
        over, _ = ray.wait(list(jobs), num_returns=len(jobs), timeout=0) if jobs else ([], [])
        ended = []
        for job in (jobs[task] for task in over):
            del self._jobs[job.trial.identity]
            ended.append(Ended(trial=job.trial, code=_outcome(job), seconds=time.monotonic() - job.started))
        return ended

    def stop(self, number: int, trial: Trial | None = None) -> None:
        """Cancels a trial's task, or all: one that runs saves, and is killed after 30 s."""
        self._cancel(trial, force=False)

    def kill(self) -> None:
        """Kills all at once."""
        self._cancel(None, force=True)

    def _cancel(self, trial: Trial | None, force: bool) -> None:
        import ray

        for job in self._jobs.values():
            if trial is None or job.trial.identity == trial.identity:
                with suppress(ValueError):  # over by now
                    ray.cancel(job.task, force=force)


def connect(options: RayConf) -> None:
    """Makes this process a driver of the cluster.

    Raises:
        UserError: Ray is not installed, there is no cluster, or an option is out of range.
    """
    check_positive({key: getattr(options, key) for key in ("cpus", "memory_gib", "max_parallel")})
    if options.gpus is not None and options.gpus < 0:
        raise reject("hydra.launcher.gpus", options.gpus, "must be 0 or more, or null for trainer.devices")
    if options.retries < 0:
        raise reject("hydra.launcher.retries", options.retries, "must be 0 or more")
    with _LIBRARY.needed("hydra/launcher=ray"):
        import ray
    try:
        ray.init(options.address or "auto", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        remedy = "no Ray cluster answers: start one by `ray start --head`, or take hydra.launcher.address=local"
        raise UserError(f"hydra.launcher.address={options.address or 'null'}: {remedy} ({error})") from error


def _outcome(job: _Job) -> int:
    """Returns the trial's exit code; says in its folder what it could not itself."""
    import ray

    run = job.trial.run
    try:
        return int(ray.get(job.task))
    except ray.exceptions.TaskCancelledError:
        code, reason = -signal.SIGTERM, "cancelled"
    except ray.exceptions.RayError as error:
        code, reason = -signal.SIGKILL, f"Ray lost the task: {' '.join(str(error).split())[:300]}"
    if run.read_status().get("state") == "running":
        run.write_status(state="running", exit_reason=reason)
    return code
