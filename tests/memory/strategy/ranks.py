"""Runs trials one after the other as one rank of a group: `ranks.py ARGUMENT...`, with RANK and the like set.

HEAD_CHUNK in the environment: tokens whose logits are made at once.

An argument is a run folder, or `FOLDER@STEP`: the run there goes on from that step, and what its metrics were before
is in whole.jsonl. Processes and their imports cost more than the runs, so that all cases of a file share them.
"""

import importlib.util
import os
import shutil
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import TCPStore

from harness.experiment import trial
from harness.experiment.folder import RunFolder
from harness.experiment.ranks import AS_RANK
from harness.model import loss

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from deepspeed_cpu import deepspeed_without_gpu


def rewind(folder: Path, step: str) -> None:
    """Leaves a run as a kill after a step would have, and makes it go on."""
    shutil.copy(folder / "metrics.jsonl", folder / "whole.jsonl")
    last = folder / "checkpoints" / "last"
    last.unlink()
    last.symlink_to(f"step_{step}")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("resume: null", "resume: auto"))


class Meeting:
    """Lets the ranks wait for each other between runs, whose process groups come and go."""

    def __init__(self) -> None:
        self.first = os.environ["RANK"] == "0"
        self.size = int(os.environ["WORLD_SIZE"])
        port = int(os.environ["MEETING_PORT"])
        self._store = TCPStore("127.0.0.1", port, self.size, self.first, timedelta(minutes=5))
        self._number = 0

    def wait(self, said: str = "") -> str:
        """Waits for all; returns what the first one said."""
        self._number += 1
        if self.first:
            self._store.set(f"said/{self._number}", said)
        self._store.add(f"there/{self._number}", 1)
        while self._store.add(f"there/{self._number}", 0) < self.size:
            time.sleep(0.02)
        return self._store.get(f"said/{self._number}").decode()


def run(argument: str, meeting: Meeting) -> int:
    path, _, step = argument.partition("@")
    # The first rank may still be at its result.
    meeting.wait()
    folder = RunFolder(Path(path))
    if meeting.first:
        if step:
            rewind(folder.path, step)
        folder.lock()
        folder.begin_attempt()
    os.environ["MASTER_PORT"] = meeting.wait(str(free_port()))
    try:
        return trial.main([path, str(time.monotonic()), AS_RANK])
    finally:
        folder.unlock()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> int:
    """Returns the first exit code that is not 0."""
    there = importlib.util.find_spec("deepspeed") is not None and not torch.cuda.is_available()
    if there and "zero" in " ".join(sys.argv):
        deepspeed_without_gpu()
    loss.CHUNK = int(os.environ.get("HEAD_CHUNK", loss.CHUNK))
    meeting = Meeting()
    return next((code for argument in sys.argv[1:] if (code := run(argument, meeting))), 0)


if __name__ == "__main__":
    trial.end(main(), is_rank=True)
