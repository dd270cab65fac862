"""A sweep folder: its lock, what it was started with, and its trials, each known by what it computes.

sweep.lock    held by the process that runs the sweep, and free when that ends, however it ends
sweep.json    command, process, and every trial asked for
study.yaml    question, metric, axes, where it is a study's
multirun.yaml Hydra's
<number>_<overrides>/   a run folder each, with trial.json
"""

import fcntl
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError
from harness.experiment.folder import RunFolder, is_held, read_json, write_json

FINAL = ("completed", "diverged", "failed", "out_of_memory", "pruned")
"""States that a second start leaves alone. `running` without a process, and `preempted`, go on."""
FAILED = ("failed", "out_of_memory")
"""States that `retry` starts again; a trial that diverged would diverge again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A trial.json: what a trial is."""

    identity: str
    """Hash of what it computes (`harness.config.config_hash`)."""
    number: int
    overrides: list[str]
    command: str
    """That runs it alone."""
    folder: RunFolder


@dataclass(slots=True)
class SweepFolder:
    """Paths of one sweep."""

    path: Path
    _lock: IO[str] | None = field(default=None, init=False)

    @property
    def plan(self) -> Path:
        """What the sweep was started with."""
        return self.path / "sweep.json"

    @property
    def study(self) -> Path:
        """The study's file."""
        return self.path / "study.yaml"

    def lock(self) -> None:
        """Keeps a second sweep out until this process ends.

        Raises:
            UserError: Another process runs a sweep in the folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the sweep folder can not be made: {error}") from error
        self._lock = open(self.path / "sweep.lock", "a", encoding="utf-8")  # noqa: SIM115 - held to the end
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            plan = self.read_plan()
            who = f"process {plan.get('pid')} on {plan.get('host')}"
            remedy = f"wait for it, or end it with python -m harness.sweep cancel {self.path}"
            raise UserError(f"{self.path}: a sweep runs in this folder ({who}); {remedy}") from error

    def unlock(self) -> None:
        """Lets others in; the end of the process does the same."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_locked(self) -> bool:
        """Whether a process runs the sweep."""
        return is_held(self.path / "sweep.lock")

    def read_plan(self) -> dict[str, Any]:
        """Returns sweep.json, or an empty dict."""
        return read_json(self.plan)

    def write_plan(self, command: Sequence[str], trials: Sequence[dict[str, Any]]) -> None:
        """Writes who runs the sweep, and what it is to do.

        Args:
            command: Behind `python -m harness`.
            trials: `identity`, `number` and `overrides` of each.
        """
        content = {
            "command": list(command),
            "cwd": os.getcwd(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
            "trials": list(trials),
        }
        write_json(self.plan, content)

    def records(self) -> list[Record]:
        """Returns the trials that have a folder, by number."""
        found = [_read(path) for path in self.path.glob("*/trial.json")]
        return sorted(found, key=lambda record: (record.number, record.folder.path.name))


def write_record(record: Record) -> None:
    """Writes a trial.json, last of all files of a trial that is ready to start: without it the folder is nobody's."""
    content = {key: getattr(record, key) for key in ("identity", "number", "overrides", "command")}
    write_json(record.folder.path / "trial.json", content)


def state_of(folder: RunFolder) -> str:
    """Returns waiting, running, dead (its process is gone), or how the run ended, as its status says."""
    if folder.is_held:
        return "running"
    state = folder.read_status().get("state", "waiting")
    return "dead" if state == "running" else str(state)


def _read(path: Path) -> Record:
    content = read_json(path)
    return Record(
        identity=content["identity"],
        number=content["number"],
        overrides=content["overrides"],
        command=content["command"],
        folder=RunFolder(path.parent),
    )
