"""`python -m harness.experiment.trial FOLDER [STARTED]`: one run from the frozen config in its folder.

Every run is a fresh process tree on a resolved config: `python -m harness` replaces itself by this module, a multirun
starts it once per trial, and Lightning starts it once more for each further rank. STARTED is the clock reading at which
the command began, for `startup_time_s`; the process's own start where it is absent.
"""

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import registry
from harness.config import RunConfig, load
from harness.errors import UserError, tell
from harness.experiment.compile_cache import keep_compiled
from harness.experiment.folder import RunFolder, local_rank
from harness.experiment.startup import Phase, Startup
from harness.trainer.standard import training_device

if TYPE_CHECKING:
    from harness.model.weights import Weights

log = logging.getLogger(__name__)

EXIT_USER, EXIT_CRASH = 2, 1


def main(arguments: list[str]) -> int:
    """Runs the trial in a folder and returns the exit code; the last line on stdout names the folder."""
    startup = Startup(float(arguments[1]) if len(arguments) > 1 else time.time())
    registry.load()
    folder = RunFolder(Path(arguments[0]))
    try:
        config = load(folder.config)
        if local_rank() == 0:
            _claim(folder, config)
        code = _run(folder, config, startup)
    except UserError as error:
        tell(error)
        code = EXIT_USER
    finally:
        folder.unlock()
    if local_rank() == 0:
        print(f"run: {folder.path}", flush=True)
    return code


def _claim(folder: RunFolder, config: RunConfig) -> None:
    folder.lock()
    if config.trainer.resume is None and folder.status.is_file():
        raise UserError(f"{folder.path} already holds a run: go on with trainer.resume={folder.path}")
    folder.begin_attempt()


def _run(folder: RunFolder, config: RunConfig, startup: Startup) -> int:
    """Trains and turns every way to end into a summary, a status and an exit code."""
    keep_compiled(config.data.cache_dir)
    try:
        with _reading(config) as weights:
            # Weights are on their way while the heavy packages are imported.
            from harness.experiment.train import train

            startup.end(Phase.imports)
            train(folder, config, startup, weights)
        return 0
    except BaseException as raised:
        # Lightning turns Ctrl-C into SystemExit(1).
        interrupted = isinstance(raised, SystemExit) and isinstance(raised.__context__, KeyboardInterrupt)
        error = KeyboardInterrupt("interrupted") if interrupted else raised
        found = [(status, code) for kind, status, code in _ends() if isinstance(error, kind)]
        status, code = found[0] if found else ("failed", EXIT_CRASH)
        if local_rank() == 0:
            from harness.experiment.result import write_failure

            write_failure(folder, config, status, error, startup.started)
        if isinstance(error, UserError):
            raise
        # On the console and in train.log, which is all that is left of a job on a cluster.
        log.error("%s: %s", status, error, exc_info=error if status != "preempted" else None)
        return code


@contextmanager
def _reading(config: RunConfig) -> "Iterator[Weights | None]":
    """Reads the weights in the background; whatever ends the run early does not wait for them."""
    from harness.memory.first_device import first_device
    from harness.model.weights import begin

    weights = begin(config.model, first_device(config.memory, training_device(config.trainer, local_rank())))
    try:
        yield weights
    finally:
        if weights is not None:
            weights.stop()


def _ends() -> list[tuple[type[BaseException], str, int]]:
    """Returns the errors that end a run in a way of their own, with its status and exit code."""
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from harness.trainer.recorder import DivergedError

    return [
        (DivergedError, "diverged", EXIT_CRASH),
        (torch.OutOfMemoryError, "out_of_memory", EXIT_CRASH),
        (KeyboardInterrupt, "preempted", 128 + signal.SIGINT),
        (SIGTERMException, "preempted", 128 + signal.SIGTERM),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
