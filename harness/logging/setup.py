"""Python's logging for a run: short lines on the console of rank 0, all of it with times in the run folder."""

import logging
import sys
import warnings
from pathlib import Path
from typing import TextIO

FILE_ONLY = "file_only"
"""Set to true in a record's `extra` to keep it off the console."""

QUIET = (
    "filelock",
    "fsspec",
    "git",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.utilities.rank_zero",
    "matplotlib",
    "PIL",
    "transformers",
    "urllib3",
)
"""Loggers of which only warnings are kept: banners, tips, and a line for each request or font."""

_OWN = "harness."
_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def setup_logging(run_folder: Path, rank: int) -> None:
    """Sends log records and Python warnings to the console and to a file of the run folder.

    The console is standard error of rank 0, and shows INFO. The file is `train.log`, on other ranks `ranks/rank_1.log`
    and so on, to which their standard error goes as well; it is appended to. A second call replaces the handlers of the
    first.

    Args:
        run_folder: An existing folder.
        rank: Global rank of this process.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if (handler.name or "").startswith(_OWN)]:
        root.removeHandler(handler)
        handler.close()
    if rank == 0:
        root.addHandler(_console())
    file = run_folder / ("train.log" if rank == 0 else f"ranks/rank_{rank}.log")
    file.parent.mkdir(exist_ok=True)
    root.addHandler(_file(file))
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # What a library will change in a later version is for its callers to read, not for the user of a pinned one.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|lightning)\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(transformers|peft|lightning)\.")
    # Lightning's, wherever SLURM is installed; who starts the ranks is settled before it looks.
    warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
    # Of torch 2.11, which looks at all that it takes into a compiled program.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not", category=UserWarning)
    _quiet_libraries(rank)


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a live progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present standard error."""
        return sys.stderr


class ConsoleFormatter(logging.Formatter):
    """The message alone for INFO, the level before it otherwise; a Python warning without the line of code."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record, with its traceback if it has one."""
        text = super().format(record)
        if record.name == "py.warnings":
            text = text.partition("\n")[0]
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{level}{text}"


def _console() -> logging.Handler:
    handler = ConsoleHandler()
    handler.name = f"{_OWN}console"
    handler.setLevel(logging.INFO)
    handler.setFormatter(ConsoleFormatter())
    handler.addFilter(lambda record: not getattr(record, FILE_ONLY, False))
    return handler


def _file(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.name = f"{_OWN}file"
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    return handler


def _quiet_libraries(rank: int) -> None:
    from transformers.utils import logging as transformers_logging

    # These libraries print by handlers of their own and pass nothing on, which would leave train.log without them.
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    if rank != 0 or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
