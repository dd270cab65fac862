"""`hydra/launcher=serial`, `pool`, `slurm` and `ray`: Hydra's seam to the processes of a sweep.

Hydra's own launcher runs trials inside its process, one after the other. Here each is a process of its own on a frozen
config, known by what it computes: in a folder that was swept before, those that are over are not started, and those
that died go on.
"""

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from harness.errors import ends_on_mistake
from harness.experiment.launch import Task, monitored
from harness.sweep.crew import Crew, Runner, Share, open_sweep
from harness.sweep.folder import SweepFolder
from harness.sweep.plugin import RayConf, SlurmConf, adopt, check_positive
from harness.sweep.pool import Pool
from harness.sweep.ray_queue import RayQueue, connect
from harness.sweep.slurm_queue import SlurmQueue, check
from harness.sweep.trial import Trial


class PoolLauncher(Launcher):
    """Runs trials side by side."""

    alone = False

    def __init__(self, memory_gib: float | None, jobs: int | None = 1, per_gpu: int = 1, *, warm: bool = False) -> None:
        """Args: as in `PoolConf`."""
        self.memory_gib, self.jobs, self.per_gpu, self.warm = memory_gib, jobs, per_gpu, warm
        self.crew: Crew

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Opens the sweep folder, which no other sweep may run in."""
        assert isinstance(task_function, Task)
        with ends_on_mistake():
            sweep = open_sweep(config)
            share, pool = self.where(sweep)
            self.crew = Crew(hydra_context, config, task_function, share, pool, sweep)

    def where(self, sweep: SweepFolder) -> tuple[Share, Runner]:
        """Returns how trials share what there is, and what runs them.

        Raises:
            UserError: An option is out of range.
        """
        check_positive({key: getattr(self, key) for key in ("jobs", "per_gpu", "memory_gib")})
        share = Share(jobs=self.jobs, per_gpu=self.per_gpu, alone=self.alone)
        return share, Pool(memory_gib=self.memory_gib, warm=self.warm)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs trials to their end; the value of each is its last one of `trainer.monitor`, or None."""
        planned = self.crew.plan(job_overrides, initial_job_idx)
        with ends_on_mistake():
            self.crew.run([trial for trial in planned if trial is not None])
        return [_returned(overrides, trial) for overrides, trial in zip(job_overrides, planned, strict=True)]


class SerialLauncher(PoolLauncher):
    """Runs one trial after the other."""

    alone = True


class SlurmLauncher(PoolLauncher):
    """Hands trials to SLURM and waits for them."""

    def __init__(self, **options: Any) -> None:
        """Args: as in `SlurmConf`."""
        self.options = SlurmConf(**options)
        self.crew: Crew

    def where(self, sweep: SweepFolder) -> tuple[Share, Runner]:
        """Returns the queue.

        Raises:
            UserError: SLURM is not here, or an option is out of range.
        """
        check(self.options)
        return Share(jobs=self.options.max_parallel, elsewhere=True), SlurmQueue(self.options, sweep.path)


class RayLauncher(PoolLauncher):
    """Hands trials to a Ray cluster and waits for them."""

    def __init__(self, **options: Any) -> None:
        """Args: as in `RayConf`."""
        self.options = RayConf(**options)
        self.crew: Crew

    def where(self, sweep: SweepFolder) -> tuple[Share, Runner]:
        """Returns the queue.

        Raises:
            UserError: There is no cluster, or an option is out of range.
        """
        connect(self.options)
        return Share(jobs=self.options.max_parallel, elsewhere=True), RayQueue(self.options)


def _returned(overrides: Sequence[str], trial: Trial | None) -> JobReturn:
    value = None if trial is None else monitored(trial.run.read_summary(), trial.config.trainer.monitor)
    # A failed trial ends no sweep, which Hydra's FAILED would.
    job = JobReturn(overrides=list(overrides), working_dir=os.getcwd(), status=JobStatus.COMPLETED)
    job.return_value = value
    return job


adopt(PoolLauncher)
adopt(SerialLauncher)
adopt(SlurmLauncher)
adopt(RayLauncher)
