"""`python -m harness.sweep.worker`: runs trials one after the other in this process, for `hydra.launcher.warm=true`.

An order is a line on standard input; a byte on standard output says that its trial has completed. A trial that ends in
any other way ends the process, with its exit code: what an error, a signal or a failing GPU may have left behind
reaches no other trial. What completed trials leave behind is put back: logging, warnings, signals, the environment,
torch's settings. Each trial seeds every generator itself. Models are not handed on, see `harness.model.kept`.
"""

import gc
import importlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.config import load
from harness.errors import UserError
from harness.experiment.compile_cache import keep_compiled
from harness.experiment.folder import RunFolder
from harness.experiment.rank import end_with_parent
from harness.experiment.startup import Startup

if TYPE_CHECKING:
    from harness.model.kept import Kept

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A trial to run."""

    folder: str
    """Its run folder, with its config."""
    output: str
    """File for what it prints."""
    started: float
    """`time.monotonic()` when it was asked for."""

    def line(self) -> bytes:
        """Returns it as `main` reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(slots=True)
class Worker:
    """What stays between trials."""

    kept: "Kept"
    num_done: int = 0

    def run(self, order: Order) -> int:
        """Runs a trial and returns its exit code."""
        from harness.experiment.trial import run_in

        startup = Startup(order.started, {"trials_before": self.num_done, "weights_gib": 0.0, "compiled": False})
        with _put_back():
            code = run_in(RunFolder(Path(order.folder)), startup, self.kept)
        self.num_done += 1
        return code

    def has_released(self) -> bool:
        """Frees what the last trial had, and says whether all of it could be."""
        import torch

        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_per_process_memory_fraction(1.0)
        return not self.kept.holds_model


def main() -> int:
    """Runs the trials that are asked for until there are no more, or one does not complete; returns its exit code."""
    end_with_parent(signal.SIGTERM)
    with os.fdopen(os.dup(0), "rb") as orders, os.fdopen(os.dup(1), "wb", buffering=0) as replies:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        worker: Worker | None = None
        while line := orders.readline():
            order = Order(**json.loads(line))
            _redirect(Path(order.output))
            worker = worker or _begin(RunFolder(Path(order.folder)))
            if code := worker.run(order):
                return code
            if not worker.has_released():
                print("the trial's model is still in memory: the next one gets another process", flush=True)
                return 0
            sys.stdout.flush()
            sys.stderr.flush()
            replies.write(b".")
    return 0


def _begin(first: RunFolder) -> Worker:
    """Imports what every trial needs, so that what the packages change in this process is there to be put back."""
    registry.load()
    # A config that is a mistake is the trial's to tell.
    with suppress(UserError):
        keep_compiled(load(first.config).data.cache_dir)
    importlib.import_module("harness.experiment.train")
    from harness.model.kept import Kept

    return Worker(Kept())


def _redirect(output: Path) -> None:
    """Sends what this process prints, native libraries included, to a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


@contextmanager
def _put_back() -> Iterator[None]:
    """Puts back what a trial changes in its process."""
    import torch

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    environment, found = dict(os.environ), {number: signal.getsignal(number) for number in _SIGNALS}
    settings: list[tuple[Callable[[Any], Any], Any]] = [
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
    ]
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        for handler in [item for item in root.handlers if item not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for number, handler_before in found.items():
            signal.signal(number, handler_before)
        for put, value in settings:
            put(value)
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic


if __name__ == "__main__":
    sys.exit(main())
