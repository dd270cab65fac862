"""Kills a study with SIGKILL at random moments, starts it again each time, and compares what it comes to.

    OMP_NUM_THREADS=1 python benchmarks/study_kills.py --study rank_lr_freeze --kills 5 --out outputs/study_kills
    python benchmarks/study_kills.py --study rank_lr_freeze -- hydra.launcher.warm=true tuner.rank=4,8

The study runs undisturbed first, in OUT/whole, then killed in OUT/killed: the process that launches, so that its trials
die with it. Both reports have to be the same but for times: each trial's status, losses and counts, and each line of
the leaderboard. Overrides behind `--` go to both. Exit code 1 where anything differs.
"""

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from process import ROOT, environment
from tables import read_json, split_arguments

SAME = ("status", "config_hash", "seed", "steps", "tokens", "train_loss", "val", "best", "data")
"""Of summary.json: what a trial computes."""
TIMED = ("sweep", "wall_time", "hours", "per_s", "gib", "command")
"""Words in the names of the report's columns that differ from run to run."""


def start(study: str, folder: Path, more: Sequence[str], launcher: str = "pool") -> "subprocess.Popen[bytes]":
    """Starts a study in its folder, or goes on with it."""
    own = [f"+sweep={study}", f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
    command = ["-m", "harness", "-m", *own, *more]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment(), stdout=log, stderr=log)


def trials(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what each trial computed, by its folder's name."""
    found = {path.parent.name: read_json(path, {}) for path in folder.glob("*/summary.json")}
    return {name: {key: summary.get(key) for key in SAME} for name, summary in found.items()}


def report(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a study's report, without what differs from run to run."""
    command = [sys.executable, "-m", "harness.report", "--no-pictures", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)
    with open(folder / "report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not any(word in key for word in TIMED)} for row in rows]


def killed(study: str, folder: Path, more: Sequence[str], kills: int, whole_s: float, draw: random.Random) -> list[int]:
    """Runs a study to its end over so many kills; returns how many trials had completed at each of them."""
    done = []
    for _ in range(kills):
        process = start(study, folder, more)
        time.sleep(draw.uniform(0.5, 1.0) * whole_s / kills)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        done.append(sum(1 for _ in folder.glob("*/adapter")))
        print(f"killed with {done[-1]} trials done", flush=True)
    process = start(study, folder, more)
    if code := process.wait():
        raise SystemExit(f"the study ended with {code}: {folder.with_suffix('.log')}")
    return done


def main() -> int:
    """Runs, kills and compares."""
    arguments, more = split_arguments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="rank_lr_freeze")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "study_kills")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.monotonic()
    if code := start(args.study, out / "whole", more).wait():
        raise SystemExit(f"the study ended with {code}: {out / 'whole.log'}")
    whole_s = time.monotonic() - began
    done = killed(args.study, out / "killed", more, args.kills, whole_s, random.Random(args.seed))
    expected, found = trials(out / "whole"), trials(out / "killed")
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    same = report(out / "whole") == report(out / "killed")
    figures = {"trials": len(expected), "whole_s": round(whole_s, 1), "done_at_kills": done, "differ": wrong}
    (out / "result.json").write_text(json.dumps(figures | {"same_report": same}, indent=1) + "\n", encoding="utf-8")
    verdict = "equal" if same and not wrong else "NOT EQUAL"
    print(f"{len(expected)} trials in {whole_s:.0f} s undisturbed; killed {len(done)} times; results {verdict}")
    return int(bool(wrong) or not same)


if __name__ == "__main__":
    sys.exit(main())
