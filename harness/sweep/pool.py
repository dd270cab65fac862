"""Runs trials as processes side by side; none of them takes another, or the pool, with it.

Each is a process group of its own, so that a Ctrl-C reaches the pool alone, which hands it on once. A trial ends with
the process that started it (`harness.experiment.rank.end_with_parent`), so a pool that is killed leaves none behind.
That holds for the thread that started it, too: the pool runs in one thread, and asks.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.experiment.end import write_end
from harness.experiment.rank import PARENT, without_ranks
from harness.sweep.trial import Trial

COMMAND = (sys.executable, "-m", "harness.experiment.trial")
GRACE_S = 30.0
"""From the signal to a trial until it is killed: the ranks of a trial get 20 s."""
_MEASURE_S = 0.5
"""Between looks at the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A trial that is over."""

    trial: Trial
    code: int
    """Exit code, negative for a signal."""
    seconds: float


@dataclass(slots=True)
class _Job:
    trial: Trial
    process: "subprocess.Popen[bytes]"
    started: float
    kill_at: float | None = None
    used_gib: float | None = None
    """Of memory, where that is why it was killed."""

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers as well


@dataclass(kw_only=True, slots=True)
class Pool:
    """The trials that run."""

    memory_gib: float | None = None
    """GiB at which a trial is killed."""
    _jobs: dict[str, _Job] = field(default_factory=dict, init=False)
    _measured: float = field(default=0.0, init=False)

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, trial: Trial, variables: Mapping[str, str], output: Path | None) -> None:
        """Starts a trial whose folder is ready.

        Args:
            trial: The trial.
            variables: Of its environment, beside those of this process that are no rank's.
            output: File for what it prints; None for this process's console.
        """
        own = without_ranks() | {PARENT: str(os.getpid()), "PYTHONFAULTHANDLER": "1"} | dict(variables)
        command = [*COMMAND, str(trial.run.path)]
        if output is None:
            process = subprocess.Popen(command, env=own, process_group=0)
        else:
            with output.open("ab") as file:
                process = subprocess.Popen(
                    command, env=own, process_group=0, stdin=subprocess.DEVNULL, stdout=file, stderr=file
                )
        self._jobs[trial.identity] = _Job(trial, process, time.time())

    def adopt(self, trial: Trial) -> bool:
        """Takes over a trial that an earlier start left running: here none outlives the process that started it."""
        return False

    def poll(self) -> list[Ended]:
        """Returns the trials that ended since the last look; kills those that use too much, or do not stop."""
        self._measure()
        ended = []
        for job in list(self._jobs.values()):
            code = job.process.poll()
            if code is None:
                if job.kill_at is not None and time.monotonic() > job.kill_at:
                    job.kill()
                continue
            del self._jobs[job.trial.identity]
            _write_death(job, code, self.memory_gib)
            ended.append(Ended(trial=job.trial, code=code, seconds=time.time() - job.started))
        return ended

    def stop(self, number: int, trial: Trial | None = None) -> None:
        """Hands a signal to a trial, or to all; one that does not end within 30 s is killed."""
        for job in self._jobs.values():
            if trial is None or job.trial.identity == trial.identity:
                job.process.send_signal(number)
                job.kill_at = job.kill_at or time.monotonic() + GRACE_S

    def kill(self) -> None:
        """Kills all at once."""
        for job in self._jobs.values():
            job.kill()

    def _measure(self) -> None:
        if self.memory_gib is None or time.monotonic() < self._measured + _MEASURE_S:
            return
        self._measured = time.monotonic()
        for job in self._jobs.values():
            used = private_gib(job.process.pid)
            if used > self.memory_gib and job.used_gib is None:
                job.used_gib = used
                _kill_tree(job)


def private_gib(pid: int) -> float:
    """Returns GiB of private pages of a process and all below it; those of mapped files, as of weights, are shared."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in [top := psutil.Process(pid), *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
                memory = process.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total / 2**30


def _kill_tree(job: _Job) -> None:
    """Kills ranks and their workers too, which are in groups of their own."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(job.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    job.kill()


def _write_death(job: _Job, code: int, memory_gib: float | None) -> None:
    """Writes what a trial could not that was killed. Its state stays as it was: it may go on."""
    run = job.trial.run
    if job.used_gib is not None:
        reason = f"used {job.used_gib:.2f} GiB of host memory; hydra.launcher.memory_gib={memory_gib:g}"
        write_end(run, job.trial.config, "out_of_memory", reason, job.started)
    elif code < 0 and run.read_status().get("state") in ("running", None):
        by_whom = " (out of host memory, or by hand)" if code == -signal.SIGKILL else ""
        run.write_status(state="running", exit_reason=f"killed by {signal.Signals(-code).name}{by_whom}")
