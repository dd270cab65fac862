"""Sweeps of fake trials: the command line, the folder and the signals are real."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import harness
from harness.experiment.folder import RunFolder

ROOT = Path(harness.__file__).parent.parent
COMMAND = Path(__file__).with_name("command.py")


def status(trial):
    return RunFolder(trial).read_status()


def steps(trial):
    path = RunFolder(trial).metrics
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


class Sweep:
    """Starts commands in a folder of their own."""

    def __init__(self, cwd):
        self.cwd, self.folder = cwd, cwd / "sweep"

    def start(self, *arguments, **environment):
        own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        path = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, str(COMMAND), "-m", f"hydra.sweep.dir={self.folder}", *arguments],
            cwd=self.cwd,
            env={**own, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments, **environment):
        process = self.start(*arguments, **environment)
        process.out, process.err = process.communicate(timeout=120)
        return process

    def trials(self):
        return sorted(path.parent for path in self.folder.glob("*/trial.json"))


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
