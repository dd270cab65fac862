"""Stands for `harness.experiment.trial`, without torch: steps of a few milliseconds, and ends that the seed chooses.

It keeps the contracts that sweeps rely on: lock, status, metrics, summary, exit codes, going on where it was.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from harness.experiment.folder import RunFolder, write_json
from harness.experiment.rank import end_with_parent

FAILS, MISTAKE, DIVERGES, DEAF, HUNGRY = 101, 102, 103, 104, 105
STEP_S = 0.05


def main(path):
    end_with_parent(signal.SIGTERM)
    folder = RunFolder(Path(path))
    config = yaml.safe_load(folder.config.read_text())
    folder.lock()
    assert config["trainer"]["resume"] or not folder.status.is_file()
    folder.begin_attempt()
    (folder.path / "environment.txt").write_text("\n".join(f"{key}={value}" for key, value in os.environ.items()))
    seed, lr, steps = config["seed"], config["optim"]["lr"] or 1e-4, config["trainer"]["max_steps"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if seed == DEAF else stop(folder, 143))
    signal.signal(signal.SIGINT, signal.SIG_IGN if seed == DEAF else stop(folder, 130))
    signal.signal(signal.SIGUSR1, stop(folder, 138))
    done = len(folder.metrics.read_text().splitlines()) if folder.metrics.is_file() else 0
    eaten = bytearray(300 * 2**20) if seed == HUNGRY else None
    for step in range(done + 1, steps + 1):
        time.sleep(STEP_S)
        if step == 2 and seed in ENDS:
            sys.exit(end(folder, *ENDS[seed]))
        with folder.metrics.open("a") as file:
            file.write(json.dumps({"step": step, "val/loss": abs(math.log10(lr) + 3) + 1 / step}) + "\n")
    print("done", bool(eaten))
    value = abs(math.log10(lr) + 3) + 1 / steps
    best = {"metric": "val/loss", "value": value, "step": steps}
    summary = {"status": "completed", "steps": steps, "val": {"val/loss": value}, "best": best, "wall_time_s": 1.0}
    write_json(folder.summary, summary)
    folder.write_status(state="completed")


ENDS = {FAILS: ("failed", "RuntimeError: boom", 1), MISTAKE: ("failed", "UserError: no such file", 2)}
ENDS[DIVERGES] = ("diverged", "DivergedError: nan", 1)


def end(folder, status, reason, code):
    write_json(folder.summary, {"status": status, "error": reason})
    folder.write_status(state=status, exit_reason=reason)
    return code


def stop(folder, code):
    def handle(number, frame):
        os._exit(end(folder, "preempted", signal.Signals(number).name, code))

    return handle


if __name__ == "__main__":
    main(sys.argv[1])
