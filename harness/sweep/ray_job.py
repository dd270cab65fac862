"""What a task of Ray runs: one trial, a process of its own on the node where the task is.

A cancelled task hands SIGTERM to its trial, which saves. A worker or launcher that is lost ends the trial too
(`harness.experiment.rank.end_with_parent`).
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from harness.experiment.rank import PARENT, without_ranks
from harness.sweep.pool import GRACE_S

_POLL_S = 0.1


def run(command: Sequence[str], folder: str) -> int:
    """Runs a trial and returns its exit code, negative for a signal.

    Args:
        command: Of a trial, to which the folder is added.
        folder: Of the run, which all nodes see.
    """
    own = without_ranks() | {PARENT: str(os.getpid()), "PYTHONFAULTHANDLER": "1"}
    with (Path(folder) / "console.log").open("ab") as output:
        process = subprocess.Popen(
            [*command, folder], env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
    kill_at: float | None = None
    while True:
        try:
            # No wait() that blocks: Ray's cancel is seen between two lines of Python alone.
            while (code := process.poll()) is None:
                if kill_at is not None and time.monotonic() > kill_at:
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(_POLL_S)
            return code
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            kill_at = kill_at or time.monotonic() + GRACE_S
