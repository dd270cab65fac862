"""Times sweeps of a local pool on GPUs, and writes what was measured into docs/sweeps.md.

    python benchmarks/bench.py prepare --only 4b_lora
    python benchmarks/pools.py warm
    python benchmarks/pools.py gpus --gpus 2
    python benchmarks/pools.py render

`warm` runs twelve short trials on one GPU, in one process and in a process each: side by side where there are two GPUs,
else one sweep behind the other. Of each trial the losses of all steps are compared. `gpus` runs a trial, and then as
many side by side as there are GPUs. Both keep their figures in docs/results/pools_<card>.json.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from process import ROOT, card_and_versions, environment
from tables import fill, keep, markdown, read_json, read_lines, split_arguments

from harness.sweep.places import visible_gpus

RESULTS = ROOT / "docs" / "results"
WORK = (
    *("experiment=bench_4b", "data.packing=true", "trainer.batch_size=1", "trainer.checkpoints=false"),
    "memory.checkpointing=false",
)
TWELVE = (
    *WORK,
    *("data.packing_length=2048", "trainer.max_steps=30", "tuner.dropout=0"),
    *("tuner.rank=8,16", "optim.lr=1e-4,2e-4", "seed=1,2,3"),
)
Entry = dict[str, Any]
TIMED_OUT = 124
"""Exit code of `timeout` where it ended what it ran."""


def sweep(overrides: Sequence[str], folder: Path, gpu: str | None, limit_s: float) -> Entry:
    """Runs a sweep of the pool, and returns its seconds, exit code and trials.

    Args:
        overrides: With the pool's own.
        folder: Of the sweep; its log lies beside it.
        gpu: The only one to be used; None: any.
        limit_s: Seconds after which it is ended.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "harness", "-m", *overrides, "hydra/launcher=pool", f"hydra.sweep.dir={folder}"]
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    began, wall = time.monotonic(), time.time()
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        code = subprocess.call(
            ["timeout", "-s", "INT", str(limit_s), *command], cwd=ROOT, env=environment() | own, stdout=log, stderr=log
        )
    took = time.monotonic() - began
    print(f"{folder.name}: {took:.0f} s, exit code {code}", flush=True)
    shown = shlex.join(["python", "-m", "harness", "-m", *overrides, "hydra/launcher=pool"])
    return {"command": shown, "seconds": took, "code": code, "trials": trials(folder, wall)}


def trials(folder: Path, began: float) -> dict[str, Entry]:
    """Returns seconds and losses of each trial that completed, by its name.

    Args:
        folder: Of the sweep.
        began: When it did, in seconds of `time.time`.
    """
    found = {}
    for path in sorted(folder.glob("*/summary.json")):
        summary = read_json(path)
        if summary["status"] == "completed":
            rows = [json.loads(line) for line in read_lines(path.with_name("metrics.jsonl"))]
            times = {key: summary.get(key) for key in ("wall_time_s", "startup_time_s", "finish_time_s")}
            steps = sum(row.get("perf/step_time_s", 0.0) for row in rows)
            losses = [row["train/loss"] for row in rows if "train/loss" in row]
            ended = path.stat().st_mtime - began
            found[path.parent.name] = times | {"ended_s": ended, "steps_s": steps, "losses": losses}
    return found


def of_device(folder: Path) -> Entry:
    """Returns card and versions that the first trial saw."""
    found = next((read_json(path) for path in sorted(folder.glob("*/environment.json"))), {})
    return card_and_versions(found, ("torch", "transformers", "peft"))


def measure_warm(out: Path, limit_s: float, more: Sequence[str]) -> Entry:
    """Runs the twelve trials both ways."""
    gpus = visible_gpus()
    home = out / f"warm_{time.time_ns()}"
    ways = {"warm": "true", "apart": "false"}

    def run(place: int, way: str) -> Entry:
        own = ("hydra.launcher.jobs=1", f"hydra.launcher.warm={ways[way]}")
        gpu = gpus[place % len(gpus)] if gpus else None
        return sweep([*TWELVE, *more, *own], home / way, gpu, limit_s)

    with ThreadPoolExecutor(min(2, max(1, len(gpus)))) as places:
        made = dict(zip(ways, places.map(run, range(2), ways), strict=True))
    return {"key": "warm", "side_by_side": len(gpus) > 1, **made, **of_device(home / "warm")}


def measure_gpus(number: int, out: Path, limit_s: float, more: Sequence[str]) -> Entry:
    """Runs one trial, and then one on each GPU."""
    home = out / f"gpus_{time.time_ns()}"
    work = (*WORK, "data.packing_length=8192", "trainer.max_steps=60", *more)
    one = sweep([*work, "seed=1"], home / "one", None, limit_s)
    every = sweep([*work, f"seed={','.join(str(seed + 1) for seed in range(number))}"], home / "all", None, limit_s)
    return {"key": f"gpus {number}", "gpus": number, "one": one, "all": every, **of_device(home / "one")}


def difference(warm: Entry, apart: Entry) -> float:
    """Returns the largest root mean square, over trials, of what the losses of a trial differ by."""
    both = warm["trials"].keys() & apart["trials"].keys()
    pairs = [(warm["trials"][name]["losses"], apart["trials"][name]["losses"]) for name in both]
    return max(
        math.sqrt(statistics.fmean((mine - its) ** 2 for mine, its in zip(one, other, strict=True)))
        for one, other in pairs
    )


def compared(one: Entry, other: Entry) -> tuple[float, str]:
    """Returns the ratio of two sweeps' seconds, and what it is of where one of them was ended before its last trial."""
    if TIMED_OUT not in (one["code"], other["code"]):
        return one["seconds"] / other["seconds"], ""
    done = min(len(made["trials"]) for made in (one, other))
    last = [sorted(trial["ended_s"] for trial in made["trials"].values())[done - 1] for made in (one, other)]
    return last[0] / last[1], f" until {done} trials were done ({last[0]:.0f} against {last[1]:.0f} s)"


def render(results: Path, docs: Path) -> None:
    """Writes the tables of docs/sweeps.md from the results."""
    entries = [entry for path in sorted(results.glob("pools_*.json")) for entry in read_json(path)]
    fill(docs / "sweeps.md", {"pools": "\n".join(_shown(entry) for entry in entries) or "Not measured.\n"})


def _shown(entry: Entry) -> str:
    one, other = ("warm", "apart") if entry["key"] == "warm" else ("one", "all")
    names = {"warm": "one process", "apart": "a process each", "one": "one trial", "all": f"{entry.get('gpus')} trials"}
    rows = []
    for name in (one, other):
        made = entry[name]
        middle = [
            statistics.median(trial[key] or 0.0 for trial in made["trials"].values())
            for key in ("wall_time_s", "startup_time_s", "steps_s", "finish_time_s")
        ]
        rows.append([names[name], str(len(made["trials"])), f"{made['seconds']:.0f}", *(f"{s:.1f}" for s in middle)])
    ratio, share = compared(entry[one], entry[other])
    if one == "one":
        words = [f"a trial on each GPU takes {1 / ratio:.2f} times as long as one alone{share}"]
    else:
        words = [f"one process takes {100 * ratio:.0f} % of the seconds{share}"]
        words.append(f"losses of a trial differ by {difference(entry[one], entry[other]):.4f} at most (rms)")
        words.append("the two beside each other on two GPUs" if entry["side_by_side"] else "one behind the other")
    header = ("trials in", "completed", "seconds", "a trial (median)", "start", "steps", "behind the last step")
    lines = [f"{entry['device']}, torch {entry['versions']['torch']}; {'; '.join(words)}.", markdown(header, rows)]
    return "\n\n".join([*lines, f"    {entry[other]['command']}"]) + "\n"


def main() -> None:
    """Does what the first argument says."""
    arguments, more = split_arguments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("warm", "gpus", "render"))
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=900, help="end a sweep after so long")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "pools", help="folder of the sweeps")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args(arguments)
    if args.command == "render":
        render(args.results, ROOT / "docs")
        return
    if args.command == "warm":
        made = measure_warm(args.out, args.limit_s, more)
    else:
        made = measure_gpus(args.gpus, args.out, args.limit_s, more)
    if not more:
        keep(made, args.results, "pools")


if __name__ == "__main__":
    main()
