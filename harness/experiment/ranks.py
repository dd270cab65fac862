"""Starts the ranks of a run that this process is to start, and ends all of them when one fails.

A run by itself starts all ranks of the node; under torchrun and srun each process starts the one rank whose place it
was given, so that a rank that hangs or is killed is seen there as well. Ranks are processes of `experiment.trial` in
process groups of their own: a Ctrl-C reaches this process alone, which hands it on once. Whoever has rank 0 owns the
run folder. Nodes learn of each other's failures by the reports in the folder (`harness.experiment.failure`).
"""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import FrameType

from harness.config import RunConfig
from harness.cores import threads, usable
from harness.errors import EXIT_HUNG
from harness.experiment.end import write_end
from harness.experiment.failure import Failure, clear, first, log_of, path_of, read_all, tell, write
from harness.experiment.folder import RunFolder
from harness.experiment.rank import PARENT, Place, address, check, given, node_rank, without_ranks
from harness.trainer.stop import SIGNALS
from harness.trainer.watchdog import SIGNAL as STACKS

AS_RANK = "rank"
"""Argument by which a trial knows that it is one of several ranks."""

LISTENER = "HARNESS_LISTENER"
"""Variable with the file descriptor of the open port on which rank 0 is to listen."""
_COMMAND = (sys.executable, "-m", "harness.experiment.trial")
_POLL_S = 0.1
_SETTLE_S = 3.0
"""From the first failure: others may fail by the same cause, or learn of it and say so."""
_STOP_S = 10.0
"""From the signal to the survivors of a failure until they are killed."""
_SIGNAL_S = 25.0
"""The same after a signal from outside, in which the step is finished and saved; SLURM waits 30 s by default."""
_AGAIN_S = 2.0
"""A signal so long after the first one is impatience, and kills."""


@dataclass(slots=True)
class _Child:
    place: Place
    process: "subprocess.Popen[bytes]"

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.process.pid, number)  # its workers as well
            else:
                self.process.send_signal(number)


@dataclass(slots=True)
class Ranks:
    """The ranks that this process started."""

    folder: RunFolder
    children: list[_Child] = field(default_factory=list)
    signals: list[tuple[int, float]] = field(default_factory=list)
    """Received from outside, with the time."""
    _asked: bool = False
    """Whether those that live were asked to end."""

    def start(self, places: Sequence[Place], started: float) -> None:
        """Starts a process for each place.

        Args:
            places: Ranks to start here.
            started: `time.monotonic()` at which the command began.
        """
        (self.folder.path / "ranks").mkdir(exist_ok=True)
        by_others = given() is not None
        with ExitStack() as stack:
            listener = None
            if by_others or places[0].num_nodes > 1:
                host, port = address()
            else:
                # The port is open from here on: nobody can take it before rank 0 listens.
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                host, port = listener.getsockname()
            inherited = dict(os.environ) if by_others else without_ranks() | threads(usable(), len(places))
            for place in places:
                own = place.variables(host, port) | {PARENT: str(os.getpid()), "PYTHONFAULTHANDLER": "1"}
                passed: tuple[int, ...] = ()
                if listener is not None and place.rank == 0:
                    passed = (listener.fileno(),)
                    own[LISTENER] = str(listener.fileno())
                output = stack.enter_context(log_of(self.folder, place.rank).open("ab")) if place.rank else None
                process = subprocess.Popen(
                    [*_COMMAND, str(self.folder.path), str(started), AS_RANK],
                    env={**inherited, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=passed,
                    process_group=0,
                )
                self.children.append(_Child(place, process))

    def watch(self) -> Failure | None:
        """Waits until all ranks have ended; when one fails, here or on another node, ends the others.

        Returns:
            The failure that ended the run, which has been shown; None where there is none.
        """
        settled_at = kill_at = math.inf
        shown: Failure | None = None
        while alive := [child for child in self.children if child.process.poll() is None]:
            now = time.monotonic()
            self._report_dead()
            if self.signals and not self._asked:
                # Which the ranks answer behind the step, see harness.trainer.stop.
                self._ask(alive, signal.SIGTERM)
                kill_at = now + _SIGNAL_S
            if settled_at == math.inf and not self._asked and (failures := read_all(self.folder)):
                settled_at = now + _SETTLE_S
                if any(failure.code == EXIT_HUNG for failure in failures):
                    self._ask_for_stacks(alive)
            if shown is None and now > settled_at and not self._asked:
                shown = self._show()
                self._ask(alive, signal.SIGINT)
                kill_at = now + _STOP_S
            if now > kill_at or self._is_pressed():
                for child in alive:
                    child.send(signal.SIGKILL)
            time.sleep(_POLL_S)
        self._report_dead()
        return shown if self._asked else self._show()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal from outside."""
        self.signals.append((number, time.monotonic()))

    @property
    def codes(self) -> list[int]:
        """Exit codes, negative for a signal."""
        return [child.process.wait() for child in self.children]

    def _ask(self, alive: Sequence[_Child], number: signal.Signals) -> None:
        """Sends a signal to those that live, once."""
        self._asked = True
        for child in alive:
            child.send(number)

    def _ask_for_stacks(self, alive: Sequence[_Child]) -> None:
        """Lets ranks say where they are that wait for one that hangs, or it for them; that one has said so."""
        for child in alive:
            if not path_of(self.folder, child.place.rank).is_file():
                child.send(STACKS)

    def _is_pressed(self) -> bool:
        """Whether somebody signals again; torchrun hands on at once what a terminal sent already."""
        return bool(self.signals) and self.signals[-1][1] - self.signals[0][1] > _AGAIN_S

    def _report_dead(self) -> None:
        """Reports for ranks that could not: killed, or ended before the first line of their own."""
        for child in [] if self._asked else self.children:
            code, rank = child.process.poll(), child.place.rank
            if code is None or code == 0 or path_of(self.folder, rank).is_file():
                continue
            end = f"ended with exit code {code}"
            if code < 0:
                end = f"killed by {signal.Signals(-code).name}"
                child.send(signal.SIGKILL)
            if code == -signal.SIGKILL:
                end += " (out of host memory, or by hand)"
            trace = log_of(self.folder, rank).read_text(errors="replace") if rank else ""
            now = time.time()
            write(
                self.folder,
                Failure(rank=rank, status="failed", code=1, reason=end, message=end, trace=trace, at=now),
            )

    def _show(self) -> Failure | None:
        found = first(read_all(self.folder))
        here = [child.place.rank for child in self.children]
        if found is not None and (found.rank in here or 0 in here):
            tell(self.folder, found, whole=found.rank in here)
        return found


def places_here(devices: int, nodes: int) -> list[Place]:
    """Returns the ranks that this process is to start.

    Raises:
        UserError: torchrun or srun started another number of processes, or nothing says which node this is.
    """
    place = given()
    if place is not None:
        check(place, devices, nodes)
        return [place]
    node = node_rank(nodes)
    return [
        Place(rank=node * devices + number, local_rank=number, world_size=nodes * devices, local_world_size=devices)
        for number in range(devices)
    ]


def supervise(folder: RunFolder, config: RunConfig, places: Sequence[Place], started: float) -> int:
    """Runs these ranks to their end and returns the run's exit code.

    Args:
        folder: The run folder, claimed by this process if rank 0 is among them.
        config: The run's config.
        places: From `places_here`.
        started: `time.monotonic()` at which the command began.
    """
    ranks = Ranks(folder)
    for number in (signal.SIGINT, *SIGNALS):
        signal.signal(number, ranks.receive)
    if len(places) == config.trainer.world_size:
        clear(folder)
    ranks.start(places, started)
    found = ranks.watch()
    failed = found is not None or any(code != 0 for code in ranks.codes)
    ended_by = ranks.signals[0][0] if ranks.signals and failed else None
    if places[0].rank == 0 and failed:
        _write_end(folder, config, started, found, ended_by)
    if ended_by is not None:
        return 128 + ended_by
    return 0 if not failed else found.code if found is not None else 1


def _write_end(
    folder: RunFolder, config: RunConfig, started: float, found: Failure | None, ended_by: int | None
) -> None:
    """Writes what rank 0 could not, or took for another end than it was."""
    state = folder.read_status().get("state")
    if ended_by is not None and state != "completed":
        write_end(folder, config, "preempted", signal.Signals(ended_by).name, started)
    elif found is not None and (found.rank != 0 or state == "running"):
        write_end(folder, config, found.status, f"rank {found.rank}: {found.reason}", started)
