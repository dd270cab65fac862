"""Trials as jobs of SLURM: the same face as `harness.sweep.pool`, and one array for all that start together.

What a trial came to is in its folder, written by the job (`harness.sweep.slurm_job`); SLURM is asked only whether the
job is still there. A launcher that is killed leaves its jobs alone: started again, it finds and awaits them.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, reject
from harness.experiment.folder import write_json
from harness.sweep.plugin import SlurmConf, check_positive
from harness.sweep.pool import Ended
from harness.sweep.slurm_job import NOTE, read_note
from harness.sweep.trial import Trial
from harness.trainer.standard import Accelerator

JOB = (sys.executable, "-m", "harness.sweep.slurm_job")
_LARGEST_ARRAY = 1000
_OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
)
"""States from which SLURM itself starts nothing again. PREEMPTED is none: such a job is requeued, or cancelled."""
_LOST = -9
"""Code of a job that ended without a word."""


@dataclass(slots=True)
class _Job:
    trial: Trial
    name: str
    started: float
    state: str = "PENDING"


@dataclass(slots=True)
class SlurmQueue:
    """The trials that SLURM has."""

    options: SlurmConf
    folder: Path
    """Of the sweep; lists and the jobs' own output go into `slurm/` below it."""
    _next: list[Trial] = field(default_factory=list, init=False)
    _jobs: dict[str, _Job] = field(default_factory=dict, init=False)
    _asked: float = field(default=0.0, init=False)

    def __len__(self) -> int:
        return len(self._next) + len(self._jobs)

    def start(self, trial: Trial, variables: Mapping[str, str], output: Path | None) -> None:
        """Puts a trial into the next array.

        Args:
            trial: The trial.
            variables: Not used: SLURM says what a job gets.
            output: Not used: the job writes console.log into the trial's folder.

        Raises:
            UserError: The trial wants several nodes.
        """
        if (nodes := trial.config.trainer.nodes) > 1:
            remedy = "a trial of hydra/launcher=slurm has one node; start such runs by sbatch and srun (docs/launch.md)"
            raise reject("trainer.nodes", nodes, remedy)
        self._next.append(trial)

    def adopt(self, trial: Trial) -> bool:
        """Takes over a trial whose job is there from an earlier start."""
        name = None if trial.folder is None else read_note(trial.run).get("job")
        if name is None or not _is_there(_states([name]).get(name)):
            return False
        self._jobs[trial.identity] = _Job(trial, name, time.monotonic())
        return True

    def poll(self) -> list[Ended]:
        """Submits what waits to be, and returns the trials whose jobs are over since the last look.

        Raises:
            UserError: SLURM refuses a job.
        """
        while self._next:
            array, self._next = self._next[:_LARGEST_ARRAY], self._next[_LARGEST_ARRAY:]
            self._submit(array)
        if not self._jobs or time.monotonic() < self._asked + self.options.poll_seconds:
            return []
        self._asked = time.monotonic()
        states = _states([job.name for job in self._jobs.values()])
        ended = []
        for job in list(self._jobs.values()):
            job.state = states.get(job.name) or "gone"
            if not _is_there(job.state):
                del self._jobs[job.trial.identity]
                ended.append(Ended(trial=job.trial, code=_outcome(job), seconds=time.monotonic() - job.started))
        return ended

    def stop(self, number: int, trial: Trial | None = None) -> None:
        """Cancels a trial's job, or all: SLURM sends SIGTERM, upon which a trial saves, and kills some time later."""
        chosen = [job.name for job in self._jobs.values() if trial is None or job.trial is trial]
        self._next = [item for item in self._next if trial is not None and item is not trial]
        # First those that wait, or the room of the others would be theirs.
        _cancel(chosen, "--state=PENDING")
        _cancel(chosen)

    def kill(self) -> None:
        """Kills all at once."""
        _cancel([job.name for job in self._jobs.values()], "--signal=KILL", "--full")

    def _submit(self, trials: Sequence[Trial]) -> None:
        """Submits an array and notes each trial's job in its folder."""
        place = self.folder / "slurm"
        place.mkdir(exist_ok=True)
        listed = place / f"{time.time_ns()}.txt"
        listed.write_text("".join(f"{trial.run.path.absolute()}\n" for trial in trials), encoding="utf-8")
        command = ["sbatch", "--parsable", *self._arguments(trials, place)]
        answer = subprocess.run(command, input=script(self.options, listed), capture_output=True, text=True)
        if answer.returncode:
            raise UserError(f"hydra/launcher=slurm: sbatch refuses the job: {answer.stderr.strip()}")
        number = answer.stdout.strip().partition(";")[0]
        for index, trial in enumerate(trials):
            name = f"{number}_{index}"
            write_json(trial.run.path / NOTE, {"job": name})
            self._jobs[trial.identity] = _Job(trial, name, time.monotonic())
        print(f"SLURM job {number}: {len(trials)} trials", flush=True)

    def _arguments(self, trials: Sequence[Trial], place: Path) -> list[str]:
        asked = self.options
        devices = max(trial.config.trainer.devices for trial in trials)
        on_cpu = all(trial.config.trainer.accelerator is Accelerator.cpu for trial in trials)
        gpus = asked.gpus if asked.gpus is not None else 0 if on_cpu else devices
        limit = f"%{asked.max_parallel}" if asked.max_parallel else ""
        known: dict[str, Any] = {
            "job-name": self.folder.name,
            "array": f"0-{len(trials) - 1}{limit}",
            "output": place.absolute() / "%A_%a.log",
            "open-mode": "append",
            "ntasks": 1,
            "signal": f"B:USR1@{asked.signal_seconds}",
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "time": asked.time,
            "gres": f"gpu:{gpus}" if gpus else None,
            "cpus-per-task": asked.cpus,
            "mem": None if asked.memory_gib is None else f"{round(asked.memory_gib * 1024)}M",
            "mail-user": asked.mail_user,
            "mail-type": asked.mail_type,
            "dependency": asked.dependency,
        }
        spelt = [f"--{key}={value}" for key, value in known.items() if value is not None]
        return [*spelt, "--requeue" if asked.requeue else "--no-requeue", *asked.options]


def script(options: SlurmConf, listed: Path) -> str:
    """Returns the batch script: the user's set-up lines as they are, and the job, which takes the shell's place."""
    job = [*JOB, str(listed.absolute()), *(["requeue"] if options.requeue else [])]
    return "\n".join(["#!/bin/bash", *options.setup, f"exec {shlex.join(job)}", ""])


def check(options: SlurmConf) -> None:
    """Refuses what can not run.

    Raises:
        UserError: SLURM is not here, or an option is out of range.
    """
    if shutil.which("sbatch") is None:
        raise reject("hydra/launcher", "slurm", "there is no sbatch here: start it on a login node, or use pool")
    keys = ("max_parallel", "signal_seconds", "poll_seconds", "memory_gib", "cpus")
    check_positive({key: getattr(options, key) for key in keys})


def _states(names: Sequence[str]) -> dict[str, str]:
    """Returns the state of each job that SLURM knows."""
    arrays = sorted({name.partition("_")[0] for name in names})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(arrays)}"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        # A controller that does not answer for a while is no end of a job.
        return dict.fromkeys(names, "UNKNOWN")
    rows = (line.partition("|") for line in answer.stdout.splitlines())
    return {name.strip(): state.strip() for name, _, state in rows}


def _is_there(state: str | None) -> bool:
    return state is not None and state != "gone" and state not in _OVER


def _cancel(names: Sequence[str], *options: str) -> None:
    if names:
        subprocess.run(["scancel", *options, *names], capture_output=True, text=True)


def _outcome(job: _Job) -> int:
    """Returns the trial's exit code; says in its folder where SLURM ended it and it could not itself."""
    run = job.trial.run
    code = read_note(run).get("code")
    if code is not None:
        return int(code)
    if run.read_status().get("state") == "running":
        run.write_status(state="running", exit_reason=f"SLURM ended job {job.name}: {job.state}")
    return _LOST
