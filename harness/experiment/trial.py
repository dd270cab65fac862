"""`python -m harness.experiment.trial FOLDER [STARTED [rank]]`: one run from the frozen config in its folder.

Every run is a fresh process tree on a resolved config: `python -m harness` replaces itself by this module, and a
multirun starts it once per trial. A run on several processes starts this module once more for each (`rank`), and
watches them. STARTED is the clock reading at which the command began, for `startup_time_s`; the process's own start
where it is absent.
"""

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness import registry
from harness.config import RunConfig, load
from harness.errors import EXIT_USER, UserError, tell
from harness.experiment.compile_cache import keep_compiled
from harness.experiment.end import cause_of, end_of, write_failure
from harness.experiment.failure import report
from harness.experiment.folder import RunFolder
from harness.experiment.preflight import look
from harness.experiment.rank import end_with_parent, forget_ranks, global_rank, local_rank
from harness.experiment.ranks import AS_RANK, places_here, supervise
from harness.experiment.startup import Phase, Startup
from harness.logging.setup import FILE_ONLY
from harness.trainer.standard import training_device

if TYPE_CHECKING:
    from harness.model.kept import Kept
    from harness.model.weights import Weights

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Runs the trial in a folder and returns the exit code; the last line on stdout names the folder."""
    startup = Startup(float(arguments[1]) if len(arguments) > 1 else time.monotonic())
    is_rank = arguments[2:] == [AS_RANK]
    end_with_parent(signal.SIGKILL if is_rank else signal.SIGTERM)
    registry.load()
    folder = RunFolder(Path(arguments[0]))
    return _run_rank(folder, startup) if is_rank else run_in(folder, startup)


def run_in(folder: RunFolder, startup: Startup, kept: "Kept | None" = None) -> int:
    """Runs the trial in a folder and returns the exit code; the last line on stdout names the folder.

    Args:
        folder: The run folder, with its config.
        startup: Clock of the start.
        kept: Weights of the trials before in this process, where it is to run others.
    """
    owns = True
    try:
        config = load(folder.config)
        places = places_here(config.trainer.devices, config.trainer.nodes)
        if owns := places[0].rank == 0:
            _claim(folder, config)
        if config.trainer.world_size > 1:
            code = supervise(folder, config, places, startup.started)
        else:
            forget_ranks()
            code = _run(folder, config, startup, kept=kept)
    except UserError as error:
        tell(error)
        code = EXIT_USER
    finally:
        folder.unlock()
    if owns:
        print(f"run: {folder.path}", flush=True)
    return code


def _run_rank(folder: RunFolder, startup: Startup) -> int:
    """Runs one rank of several; who started it says on the console how it ended."""
    try:
        return _run(folder, load(folder.config), startup, is_rank=True)
    except UserError:
        return EXIT_USER


def _claim(folder: RunFolder, config: RunConfig) -> None:
    folder.lock()
    if config.trainer.resume is None and folder.status.is_file():
        raise UserError(f"{folder.path} already holds a run: go on with trainer.resume={folder.path}")
    folder.begin_attempt()


def _run(
    folder: RunFolder, config: RunConfig, startup: Startup, *, is_rank: bool = False, kept: "Kept | None" = None
) -> int:
    """Trains and turns every way to end into a summary, a status and an exit code."""
    try:
        keep_compiled(config.data.cache_dir)
        look(config)
        with _reading(config, kept) as weights:
            # Weights are on their way while the heavy packages are imported.
            from harness.experiment.group import joined
            from harness.experiment.train import train

            startup.end(Phase.imports)
            with joined(config):
                train(folder, config, startup, weights)
        return 0
    except BaseException as raised:
        error = cause_of(raised)
        status, code = end_of(error)
        if is_rank:
            report(folder, global_rank(), error)
        if global_rank() == 0:
            write_failure(folder, config, status, error, startup.started)
        if isinstance(error, UserError):
            raise
        # In train.log too, which is all that is left of a job on a cluster.
        trace = error if status != "preempted" else None
        log.error("%s: %s", status, error, exc_info=trace, extra={FILE_ONLY: is_rank})
        return code


@contextmanager
def _reading(config: RunConfig, kept: "Kept | None") -> "Iterator[Weights | None]":
    """Reads the weights in the background; whatever ends the run early does not wait for them."""
    from harness.memory.first_device import first_device
    from harness.model.weights import begin

    weights = begin(config.model, first_device(config.memory, training_device(config.trainer, local_rank())), kept)
    try:
        yield weights
    finally:
        if weights is not None:
            weights.stop()


def end(code: int, *, is_rank: bool) -> NoReturn:
    """Ends the process. A rank is not taken apart: it may have a process group left, after an error or of DeepSpeed's.

    Its destruction may wait for ever, and threads of gloo that let go of a tensor while the interpreter ends abort the
    process (github.com/pytorch/pytorch/issues/190489).
    """
    if is_rank:
        if code == 0:
            atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]), is_rank=sys.argv[3:] == [AS_RANK])
