"""The ways in which a run can end before it is complete, and what is written then."""

import signal
import time
from typing import Any, NamedTuple

from harness.config import RunConfig, config_hash
from harness.errors import EXIT_CRASH, EXIT_HUNG, EXIT_USER, UserError
from harness.experiment.folder import RunFolder, write_json
from harness.logging.metrics import read


class End(NamedTuple):
    """What an error makes of a run."""

    status: str
    """failed, diverged, preempted or out_of_memory, as in summary.json."""
    code: int
    """Exit code."""


def cause_of(raised: BaseException) -> BaseException:
    """Returns what ended a run, where others have made something else of it."""
    cause = raised.__cause__
    if isinstance(raised, SystemExit) and isinstance(raised.__context__, KeyboardInterrupt):
        return KeyboardInterrupt("interrupted")  # Lightning turns Ctrl-C into SystemExit(1)
    if isinstance(raised, UserError) and cause is not None and str(cause).startswith("DataLoader worker (pid"):
        # When a worker dies, torch raises at whatever line runs: one that reads weights takes it for a fault of theirs.
        return cause
    return raised


def end_of(error: BaseException) -> End:
    """Returns the end that an error stands for."""
    if isinstance(error, UserError):
        # Before the imports: it may be one that was found without them.
        return End("failed", EXIT_USER)
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from harness.trainer.loss_check import DivergedError
    from harness.trainer.stop import Preempted
    from harness.trainer.watchdog import HungError

    if isinstance(error, Preempted):
        return End("preempted", 128 + error.number)
    ends: list[tuple[type[BaseException], End]] = [
        (HungError, End("failed", EXIT_HUNG)),
        (DivergedError, End("diverged", EXIT_CRASH)),
        (torch.OutOfMemoryError, End("out_of_memory", EXIT_CRASH)),
        (KeyboardInterrupt, End("preempted", 128 + signal.SIGINT)),
        (SIGTERMException, End("preempted", 128 + signal.SIGTERM)),
    ]
    return next((end for kind, end in ends if isinstance(error, kind)), End("failed", EXIT_CRASH))


def write_failure(folder: RunFolder, config: RunConfig, status: str, error: BaseException, started: float) -> None:
    """Writes the summary and the status of a run that did not complete.

    Args:
        folder: The run folder.
        config: The run's config.
        status: failed, diverged, preempted or out_of_memory.
        error: What ended it.
        started: `time.monotonic()` at the start of the process.
    """
    reason = f"{type(error).__name__}: {error}"
    before = folder.read_summary()
    if isinstance(error, UserError) and before:
        # A resume that was refused takes nothing from the result that is there.
        folder.write_status(state=before["status"], exit_reason=reason)
        return
    write_end(folder, config, status, reason, started)


def write_end(folder: RunFolder, config: RunConfig, status: str, reason: str, started: float) -> None:
    """Writes the summary and the status of a run that did not complete.

    Args:
        folder: The run folder.
        config: The run's config.
        status: failed, diverged, preempted or out_of_memory.
        reason: What ended it.
        started: `time.monotonic()` at the start of the process.
    """
    write_json(folder.summary, figures(folder, config, status, started) | {"error": reason})
    folder.write_status(state=status, exit_reason=reason)


def figures(folder: RunFolder, config: RunConfig, status: str, started: float) -> dict[str, Any]:
    """Returns what a summary holds however the run ended."""
    rows = read(folder.metrics) if folder.metrics.is_file() else []
    return {
        "status": status,
        "config_hash": config_hash(config),
        "seed": config.seed,
        "steps": rows[-1]["step"] if rows else 0,
        "wall_time_s": time.monotonic() - started,
    }
