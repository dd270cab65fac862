"""How ranks failed, a file each in `ranks/` of the run folder, and which of them failed first."""

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import EXIT_USER
from harness.experiment.end import end_of
from harness.experiment.folder import RunFolder, write_json

LAST_LINES = 30
"""Of a traceback or a log, on the console."""
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "process group")
"""Words of errors by which a rank learns that another one is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One rank's end."""

    rank: int
    status: str
    """failed, diverged or out_of_memory, as in summary.json."""
    code: int
    """Exit code of the run, if this is the failure that ended it."""
    reason: str
    """Kind and message of the error."""
    message: str
    """Message alone, which is all that a user's mistake needs."""
    trace: str = ""
    at: float
    """`time.time()`."""
    lost_peer: bool = False
    """Whether it says that another rank is gone, and so is no cause."""


def report(folder: RunFolder, rank: int, error: BaseException) -> None:
    """Writes how this rank failed; the first report stands. An interruption is none: somebody asked for it."""
    end = end_of(error)
    if end.status == "preempted" or path_of(folder, rank).is_file():
        return
    write(
        folder,
        Failure(
            rank=rank,
            status=end.status,
            code=end.code,
            reason=f"{type(error).__name__}: {error}",
            message=str(error),
            trace="".join(traceback.format_exception(error)),
            at=time.time(),
            lost_peer=is_lost_peer(error),
        ),
    )


def write(folder: RunFolder, failure: Failure) -> None:
    """Writes a report."""
    path = path_of(folder, failure.rank)
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(failure))


def read_all(folder: RunFolder) -> list[Failure]:
    """Returns the reports so far."""
    return [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(_reports(folder))]


def clear(folder: RunFolder) -> None:
    """Removes the reports of an attempt before this one."""
    for path in _reports(folder):
        path.unlink()


def first(failures: Sequence[Failure]) -> Failure | None:
    """Returns the failure that ended the run: the earliest that is no other's consequence.

    Where ranks came to the same end by themselves, as by a mistake in the data, it is the lowest rank's.
    """
    if not failures:
        return None
    earliest = min(failures, key=lambda failure: (failure.lost_peer, failure.at))
    same = [failure for failure in failures if failure.reason == earliest.reason]
    return min(same, key=lambda failure: failure.rank)


def tell(folder: RunFolder, failure: Failure, *, whole: bool) -> None:
    """Prints the failure that ended a run on standard error.

    Args:
        folder: The run folder.
        failure: From `first`.
        whole: With the end of its traceback, or all of it where HYDRA_FULL_ERROR=1 asks.
    """
    in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    who = "" if failure.rank == 0 else f"rank {failure.rank}: "
    if failure.code == EXIT_USER:
        shown = f"{failure.trace if in_full and whole else ''}error: {who}{failure.message}"
    else:
        shown = f"error: rank {failure.rank} failed first: {failure.reason}\n"
        if whole and failure.trace:
            shown += f"{failure.trace.rstrip() if in_full else last_lines(failure.trace)}\n"
        shown += f"its log: {log_of(folder, failure.rank)}"
    print(shown, file=sys.stderr, flush=True)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error is of communication among ranks."""
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in _LOST)


def log_of(folder: RunFolder, rank: int) -> Path:
    """Returns the file of what a rank logs and prints; rank 0 prints on the console."""
    return folder.path / "train.log" if rank == 0 else folder.path / "ranks" / f"rank_{rank}.log"


def last_lines(text: str) -> str:
    """Returns the end of a traceback or a log."""
    lines = text.rstrip().splitlines()
    return "\n".join(["...", *lines[-LAST_LINES:]] if len(lines) > LAST_LINES else lines)


def path_of(folder: RunFolder, rank: int) -> Path:
    """Returns the file of a rank's report."""
    return folder.path / "ranks" / f"rank_{rank}.json"


def _reports(folder: RunFolder) -> list[Path]:
    return list((folder.path / "ranks").glob("rank_*.json"))
