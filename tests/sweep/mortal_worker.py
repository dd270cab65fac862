"""The worker of warm trials, in which those of two seeds die after a step: 13 of SIGKILL, 14 by os._exit."""

import os
import signal
import sys

from harness.config import load
from harness.experiment import trial
from harness.sweep.worker import main

run_in = trial.run_in


def mortal(folder, startup, kept):
    from harness.trainer.recorder import Recorder

    seed, record = load(folder.config).seed, Recorder.step

    def step(self, *arguments, **options):
        record(self, *arguments, **options)
        if seed == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 14:
            os._exit(7)

    Recorder.step = step
    return run_in(folder, startup, kept)


trial.run_in = mortal

if __name__ == "__main__":
    sys.exit(main())
