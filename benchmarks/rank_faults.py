"""Kills and signals runs of several processes: two ranks, or one with data workers; streamed rows too.

    OMP_NUM_THREADS=1 python benchmarks/rank_faults.py --kills 40 --out FILE
    OMP_NUM_THREADS=1 python benchmarks/rank_faults.py --signals 50 --out FILE

A kill takes the whole tree of processes in one go, or one process of it, drawn, behind which the rest has to end by
itself. A signal goes to the process that started the ranks, or to all of the tree. ZeRO is left out where DeepSpeed is
not installed.
"""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import fault_script
import faults
import psutil
from deepspeed_cpu import deepspeed_without_gpu

from harness.experiment import ranks, trial

TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.batch_size=2")
WORKERS = ("data.workers=2",)
STRATEGIES: dict[str, tuple[str, ...]] = {
    "ddp": ("memory/strategy=ddp",),
    "fsdp2": ("memory/strategy=fsdp2",),
    "zero2": ("memory/strategy=zero2",),
    "zero3": ("memory/strategy=zero3",),
}
HAS_DEEPSPEED = find_spec("deepspeed") is not None
MODES = {
    "workers": WORKERS,
    "streaming": ("data.streaming=true",),
    "streaming, workers": (*WORKERS, "data.streaming=true"),
}
for _name, _choice in STRATEGIES.items():
    if HAS_DEEPSPEED or not _name.startswith("zero"):
        MODES |= {_name: (*TWO, *_choice), f"{_name}, workers": (*TWO, *_choice, *WORKERS)}
LONG = (*TWO, *STRATEGIES["ddp"], "trainer.max_steps=40", "trainer.val_every_steps=20", "trainer.save_every_steps=20")
"""Long enough that a signal comes before the end."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_GONE_S = 60.0


class ForkedRank:
    """In the place of `subprocess.Popen`: a rank that finds everything imported."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        pass_fds: Sequence[int],
        process_group: int,
    ) -> None:
        """Forks; the arguments are those that `Ranks.start` gives to Popen."""
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, process_group)
            for stream, file in ((1, stdout), (2, stderr)):
                if file is not None:
                    os.dup2(file.fileno(), stream)
            _be_rank(command[3:], env)

    def poll(self) -> int | None:
        """Returns the exit code once it has ended."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def wait(self) -> int:
        """Waits for the exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Signals it, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _be_rank(arguments: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Leaves this process as an exec of the rank would have."""
    from lightning.pytorch.utilities import rank_zero_only

    code = 70
    try:
        os.environ.clear()
        os.environ.update(env)
        rank_zero_only.rank = int(env["RANK"])  # type: ignore[attr-defined]  # Lightning reads it when it is imported
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = trial.main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork_ranks() -> None:
    """Makes a run fork its ranks, and DeepSpeed take the CPU. For its process, before it starts."""
    ranks.subprocess = SimpleNamespace(Popen=ForkedRank, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]
    if HAS_DEEPSPEED:
        deepspeed_without_gpu()


def make_bench(home: Path, modes: Mapping[str, tuple[str, ...]] = MODES | {"long": LONG}) -> faults.Bench:
    """Returns the runs in an empty folder, with what each needs imported here."""
    import harness.experiment.train

    if HAS_DEEPSPEED:
        import harness.memory.strategy.engine  # noqa: F401
    return faults.Bench(home, modes, fork_ranks)


def tree(pid: int) -> list[psutil.Process]:
    """Returns a process and all below it."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def kill_tree(pid: int, draw: random.Random) -> int:
    """Kills all processes of a run at once."""
    processes = tree(pid)
    for process in processes:
        _send(process, signal.SIGKILL)
    return _ended(pid, processes)


def kill_one(pid: int, draw: random.Random) -> int:
    """Kills one process of a run, and waits for the others to end by themselves."""
    processes = tree(pid)
    _send(draw.choice(processes), signal.SIGKILL)
    return _ended(pid, processes)


KILLS = {"tree": kill_tree, "one": kill_one}


def send_to_all(pid: int, number: int) -> None:
    """Signals each process of a run, as a batch system may."""
    for process in tree(pid):
        _send(process, number)


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _ended(pid: int, processes: Sequence[psutil.Process]) -> int:
    code, deadline = faults.wait(pid), time.monotonic() + _GONE_S
    while any(map(_lives, processes)):
        assert time.monotonic() < deadline, "a process outlives the run"
        time.sleep(0.01)
    return code


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def killed(bench: faults.Bench, number: int, draw: random.Random) -> dict[str, Any]:
    """Kills one of the modes, in turn, each in both ways."""
    modes, ways = list(MODES), list(KILLS)
    mode, way = modes[number % len(modes)], ways[(number // len(modes) + number % len(modes)) % 2]
    found = faults.kill_at_random(bench, mode, f"kill_{number}", draw, KILLS[way])
    return found | {"way": way, "ok": found["ok"] and found["code"] in (0, 1, -signal.SIGKILL)}


def signalled(bench: faults.Bench, number: int, draw: random.Random) -> dict[str, Any]:
    """Signals two ranks, by each signal in turn, through who started them or all at once."""
    asked, send = SIGNALS[number % 2], (os.kill, send_to_all)[number // 2 % 2]
    found = faults.end_by_signal(bench, "long", f"signal_{number}", asked, draw.randint(1, 15), send)
    return found | {"signal": asked.name, "to": "all" if send is send_to_all else "first"}


if __name__ == "__main__":
    sys.exit(fault_script.run(make_bench, {"kills": killed, "signals": signalled}))
