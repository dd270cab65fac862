"""What a job of SLURM runs: one trial of the array's list, with its signals, and again after a requeue.

SIGUSR1, sent by SLURM ahead of the time limit, makes the trial save; then the job is requeued and waits to be ended.
SIGTERM makes it save as well, and SLURM decides what follows: a preempted job it requeues by itself, a cancelled one
stays cancelled, which a requeue from here would undo.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from harness.experiment.folder import RunFolder, read_json, write_json
from harness.experiment.rank import PARENT, without_ranks
from harness.sweep.pool import COMMAND

NOTE = "slurm.json"
"""In a trial's folder: `job`, and `code` once it has ended."""
_DECIDED_WITHIN_S, _KILLED_WITHIN_S = 60, 600
"""How long a job waits to be ended, after SIGTERM and after a requeue: one that leaves by itself counts as failed."""


def read_note(run: RunFolder) -> dict[str, Any]:
    """Returns what is known of a trial's job; nothing where there is none."""
    return read_json(run.path / NOTE)


def main(listed: Path, requeues: bool) -> int:
    """Runs the trial and returns its exit code.

    Args:
        listed: The array's trials, a folder in each line.
        requeues: Whether the job is put back into the queue when its time is nearly over.
    """
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}"
    run = RunFolder(Path(listed.read_text(encoding="utf-8").splitlines()[index]))
    write_json(run.path / NOTE, {"job": name})
    own = _threads() | without_ranks() | {PARENT: str(os.getpid()), "PYTHONFAULTHANDLER": "1"}
    received: list[int] = []
    with (run.path / "console.log").open("ab") as output:
        process = subprocess.Popen(
            [*COMMAND, str(run.path)], env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, hand_on)
    code = process.wait()
    write_json(run.path / NOTE, {"job": name, "code": code})
    if received and code != 0:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        if signal.SIGTERM in received:
            time.sleep(_DECIDED_WITHIN_S)
        elif requeues and subprocess.run(["scontrol", "requeue", name]).returncode == 0:
            print(f"{name}: requeued after {signal.Signals(received[0]).name}", flush=True)
            time.sleep(_KILLED_WITHIN_S)
    return code if code >= 0 else 128 - code


def _threads() -> dict[str, str]:
    """Returns the share of the job's cores; what the user has set stays."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return {} if cores is None else {"OMP_NUM_THREADS": cores}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "requeue" in sys.argv[2:]))
