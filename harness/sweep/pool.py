"""Runs trials as processes side by side; none of them takes another, or the pool, with it.

Each is a process group of its own, so that a Ctrl-C reaches the pool alone, which hands it on once. A trial ends with
the process that started it (`harness.experiment.rank.end_with_parent`), so a pool that is killed leaves none behind.
That holds for the thread that started it, too: the pool runs in one thread, and asks.

A warm trial runs in a worker (`harness.sweep.worker`), which is that trial's process while it lasts: it is signalled,
measured and killed as such, and how it ends is how the trial ended. One that completes its trial waits for the next.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.experiment.end import write_end
from harness.experiment.rank import PARENT, without_ranks
from harness.sweep.trial import Trial
from harness.sweep.worker import Order

WORKER = (sys.executable, "-m", "harness.sweep.worker")
COMMAND = (sys.executable, "-m", "harness.experiment.trial")
GRACE_S = 30.0
"""From the signal to a trial until it is killed: the ranks of a trial get 20 s."""
_GPUS = "CUDA_VISIBLE_DEVICES"
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
class _Worker:
    """A process that takes trials one after the other."""

    process: "subprocess.Popen[bytes]"
    variables: Mapping[str, str]

    @classmethod
    def start(cls, variables: Mapping[str, str], output: Path) -> "_Worker":
        """Starts one, whose own output goes to the first trial's."""
        with output.open("ab") as file:
            process = subprocess.Popen(
                WORKER,
                env=_environment(variables),
                process_group=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return cls(process, variables)

    def take(self, order: Order) -> None:
        """Gives it a trial; one that has just died shows by its exit code."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(order.line())
            self.process.stdin.flush()

    @property
    def completed(self) -> bool:
        """Whether it has completed its trial; asked once."""
        assert self.process.stdout is not None
        with suppress(BlockingIOError):
            return bool(os.read(self.process.stdout.fileno(), 1))
        return False

    def shares_gpu(self, variables: Mapping[str, str]) -> bool:
        """Whether a trial with these variables would find it on one of its GPUs."""
        mine, theirs = (set(item.get(_GPUS, "").split(",")) - {""} for item in (self.variables, variables))
        return bool(mine & theirs)

    def end(self) -> None:
        """Ends it, while it has no trial, and waits until its memory is free."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(slots=True)
class _Job:
    trial: Trial
    process: "subprocess.Popen[bytes]"
    started: float
    worker: _Worker | None = None
    """Where it is warm."""
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
    warm: bool = False
    """Whether trials of one process follow each other in workers."""
    _idle: list[_Worker] = field(default_factory=list, init=False)
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
        worker = None
        if self.warm and output is not None and trial.config.trainer.world_size == 1:
            worker = self._worker(variables, output)
            worker.take(Order(folder=str(trial.run.path), output=str(output), started=time.monotonic()))
            process = worker.process
        else:
            self._free(variables)
            process = _start(trial, variables, output)
        self._jobs[trial.identity] = _Job(trial, process, time.monotonic(), worker)

    def adopt(self, trial: Trial) -> bool:
        """Takes over a trial that an earlier start left running: here none outlives the process that started it."""
        return False

    def poll(self) -> list[Ended]:
        """Returns the trials that ended since the last look; kills those that use too much, or do not stop."""
        self._measure()
        ended = []
        for job in list(self._jobs.values()):
            finished = job.worker if job.worker is not None and job.worker.completed else None
            code = job.process.poll() if finished is None else 0
            if code is None:
                if job.kill_at is not None and time.monotonic() > job.kill_at:
                    job.kill()
                continue
            del self._jobs[job.trial.identity]
            if finished is not None:
                self._idle.append(finished)
                if job.kill_at is not None:  # a signal may still be on its way to it
                    self._end_idle([finished])
            _write_death(job, code, self.memory_gib)
            ended.append(Ended(trial=job.trial, code=code, seconds=time.monotonic() - job.started))
        return ended

    def stop(self, number: int, trial: Trial | None = None) -> None:
        """Hands a signal to a trial, or to all; one that does not end within 30 s is killed."""
        if trial is None:
            self._end_idle()
        for job in self._jobs.values():
            if trial is None or job.trial.identity == trial.identity:
                job.process.send_signal(number)
                job.kill_at = job.kill_at or time.monotonic() + GRACE_S

    def kill(self) -> None:
        """Kills all at once."""
        self._end_idle()
        for job in self._jobs.values():
            job.kill()

    def _worker(self, variables: Mapping[str, str], output: Path) -> _Worker:
        """Returns a worker with these variables that has no trial."""
        for worker in self._idle:
            if worker.variables == variables and worker.process.poll() is None:
                self._idle.remove(worker)
                return worker
        self._free(variables)
        return _Worker.start(dict(variables), output)

    def _free(self, variables: Mapping[str, str]) -> None:
        """Ends idle workers that hold memory of a GPU which a trial is to have."""
        self._end_idle([worker for worker in self._idle if worker.shares_gpu(variables)])

    def _end_idle(self, workers: Sequence[_Worker] | None = None) -> None:
        """Ends some idle workers, or all."""
        for worker in list(self._idle if workers is None else workers):
            self._idle.remove(worker)
            worker.end()

    def _measure(self) -> None:
        if self.memory_gib is None or time.monotonic() < self._measured + _MEASURE_S:
            return
        self._measured = time.monotonic()
        for job in self._jobs.values():
            used = private_gib(job.process.pid)
            if used > self.memory_gib and job.used_gib is None:
                job.used_gib = used
                _kill_tree(job)


def _start(trial: Trial, variables: Mapping[str, str], output: Path | None) -> "subprocess.Popen[bytes]":
    """Starts a process for one trial."""
    command, own = [*COMMAND, str(trial.run.path)], _environment(variables)
    if output is None:
        return subprocess.Popen(command, env=own, process_group=0)
    with output.open("ab") as file:
        return subprocess.Popen(command, env=own, process_group=0, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return without_ranks() | {PARENT: str(os.getpid()), "PYTHONFAULTHANDLER": "1"} | dict(variables)


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
