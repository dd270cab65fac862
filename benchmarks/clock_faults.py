"""Lets the time of day jump by hours under runs that are killed and go on: nothing may depend on it.

    OMP_NUM_THREADS=1 python benchmarks/clock_faults.py --kills 20 --out FILE

`time.time` of a run's process jumps twenty times a second, by up to twelve hours either way; before the run goes on,
the times of all files in its checkpoints are drawn anew. Looked at is whether the run that goes on is the undisturbed
one, no limit in seconds fires, the seconds in the summary are right, and TensorBoard shows each step once.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import fault_script
import faults
from tracker_faults import shows_all_once

from harness.experiment.folder import RunFolder

HOURS = 12.0
MODES = {"clock": ("logging=tensorboard", "trainer.watchdog_s=60")}


def jump_about() -> None:
    """Makes the time of day of this process jump."""
    now = time.time

    def jumping() -> float:
        return now() + 3600 * random.Random(int(20 * time.monotonic())).uniform(-HOURS, HOURS)

    time.time = jumping
    time.time_ns = lambda: int(1e9 * jumping())


def make_bench(home: Path) -> faults.Bench:
    """Returns the runs, with what each needs imported here."""
    import harness.experiment.train  # noqa: F401

    return faults.Bench(home, MODES, jump_about)


def shuffle_times(folder: RunFolder, draw: random.Random) -> None:
    """Gives files and folders of the checkpoints other times."""
    now = time.time()
    for path in [folder.checkpoints, *folder.checkpoints.rglob("*")]:
        when = now + 3600 * draw.uniform(-HOURS, HOURS)
        os.utime(path, (when, when), follow_symlinks=False)


def killed(bench: faults.Bench, number: int, draw: random.Random) -> dict[str, Any]:
    """Kills a run whose clock jumps, and looks at the run that goes on."""
    folder, began = RunFolder(bench.home / f"clock_{number}"), time.monotonic()

    def kill(pid: int, draw: random.Random) -> int:
        code = faults.kill(pid, draw)
        if folder.checkpoints.is_dir():
            shuffle_times(folder, draw)
        return code

    found = faults.kill_at_random(bench, "clock", folder.path.name, draw, kill)
    summary, elapsed = folder.read_summary(), time.monotonic() - began
    right = 0 < summary["startup_time_s"] <= summary["wall_time_s"] <= elapsed and min(summary["startup"].values()) >= 0
    return found | {"ok": found["ok"] and right and shows_all_once(folder, "tensorboard")}


if __name__ == "__main__":
    sys.exit(fault_script.run(make_bench, {"kills": killed}))
