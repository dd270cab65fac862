"""A run folder: its paths, its lock, and its status, which is replaced atomically."""

import fcntl
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError


@dataclass(slots=True)
class RunFolder:
    """Paths of one run. Only rank 0 writes, and locks, or who started it."""

    path: Path
    _lock: IO[str] | None = field(default=None, init=False)

    @property
    def config(self) -> Path:
        """The resolved config, frozen before the run starts."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per step: the truth of which all loggers are views."""
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """One JSON object per generated validation item."""
        return self.path / "predictions.jsonl"

    @property
    def items(self) -> Path:
        """Loss and correctness of each row in the last validation."""
        return self.path / "items.json"

    @property
    def checkpoints(self) -> Path:
        """Holds step_N, and last and best as links to two of them."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """The run's result."""
        return self.path / "summary.json"

    @property
    def status(self) -> Path:
        """State of the run while it lives, and how it ended."""
        return self.path / "status.json"

    @property
    def group(self) -> str | None:
        """Name of the study or multirun that this run is a trial of, if it is one."""
        marks = ("study.yaml", "multirun.yaml")
        return self.path.parent.name if any((self.path.parent / mark).is_file() for mark in marks) else None

    def lock(self) -> None:
        """Keeps other processes out until this one ends.

        Raises:
            UserError: Another process holds the folder.
        """
        self._lock = open(self.path / "run.lock", "a+", encoding="utf-8")  # noqa: SIM115 - held for the whole run
        for is_last in (False, False, True):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if is_last:
                    raise UserError(f"{self.path}: another process is running in this folder") from error
                # Somebody may just be looking, as `is_held` does.
                time.sleep(0.05)

    @property
    def is_held(self) -> bool:
        """Whether a process, on this machine or another that sees the lock, runs in the folder."""
        return is_held(self.path / "run.lock")

    def unlock(self) -> None:
        """Lets others in; the end of the process does the same."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read_status(self) -> dict[str, Any]:
        """Returns the last status written, or an empty dict."""
        return read_json(self.status)

    def read_summary(self) -> dict[str, Any]:
        """Returns the summary of the last attempt that ended, or an empty dict."""
        return read_json(self.summary)

    def read_environment(self) -> dict[str, Any]:
        """Returns what the last attempt that got to train depended on, or an empty dict."""
        return read_json(self.path / "environment.json")

    def write_status(self, **changes: Any) -> None:
        """Updates the status, keeping the fields that are not named."""
        write_json(self.status, self.read_status() | changes)

    def begin_attempt(self) -> int:
        """Marks the run as running under this process and returns the attempt's number, 1 for the first."""
        for left in self.path.glob(".*.json.*"):  # what a killed process was about to write
            left.unlink()
        attempt = self.read_status().get("attempt", 0) + 1
        job = os.environ.get("SLURM_JOB_ID")
        self.write_status(
            state="running",
            attempt=attempt,
            run_id=self.read_status().get("run_id", uuid.uuid4().hex[:12]),
            pid=os.getpid(),
            host=socket.gethostname(),
            job_id=job,
            exit_reason=None,
        )
        return attempt


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file; that of a process that is gone is free by itself."""
    if not lock.is_file():
        return False
    with open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def read_json(path: Path) -> dict[str, Any]:
    """Returns a file's content, or an empty dict where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Writes a JSON file that a reader sees whole: staged beside the target, synced, then renamed."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    with open(stage, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(stage, path)
