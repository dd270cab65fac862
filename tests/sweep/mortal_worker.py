"""The worker of warm trials, or with a folder a trial, in which those of some seeds end badly after a step."""

import os
import signal
import sys
import time

from harness.config import load
from harness.experiment import trial
from harness.sweep.worker import main

HOG_GIB = 3
run_in = trial.run_in


def raises():
    raise RuntimeError("boom")


def hogs():
    """Takes memory until somebody ends it."""
    taken = bytearray(HOG_GIB * 2**30)
    taken[::4096] = b"x" * len(taken[::4096])
    time.sleep(600)


ENDS = {
    11: raises,
    13: lambda: os.kill(os.getpid(), signal.SIGKILL),
    14: lambda: os._exit(7),
    15: hogs,
}
"""By seed."""


def mortal(folder, startup, kept=None):
    from harness.trainer.recorder import Recorder

    seed, record = load(folder.config).seed, Recorder.step

    def step(self, *arguments, **options):
        record(self, *arguments, **options)
        ENDS.get(seed, lambda: None)()

    Recorder.step = step
    return run_in(folder, startup, kept)


trial.run_in = mortal

if __name__ == "__main__":
    sys.exit(trial.main(sys.argv[1:]) if sys.argv[1:] else main())
