"""Measures several GPUs of one machine against one of them, and writes what was measured into docs/scaling.md.

    python benchmarks/bench.py prepare --only 4b_lora 4b_lora_32k
    python benchmarks/multi_gpu.py run --gpus 2 --out outputs/multi_gpu
    python benchmarks/multi_gpu.py run --gpus 2 --only 4b_lora --limit-s 500
    python benchmarks/multi_gpu.py run --gpus 2 --only tiny_lora -- trainer.accelerator=cpu
    python benchmarks/multi_gpu.py render

Every line is a `python -m harness` of its own (multi_gpu.yaml). On one GPU a step has as many micro-batches as there
are GPUs, or one that they share, so that rows, global batch and losses are the same. The run of one GPU is done on
every GPU at once, for cards differ. Efficiency is their average time for a step over that of all GPUs times their
number; runs of one call are on one machine, and keep what that had. Results are kept in
docs/results/multi_gpu_<card>.json; what is run with overrides behind `--` is shown and not kept.
"""

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from multi_gpu_tables import ONE, render
from process import ROOT, card_and_versions, run_harness
from tables import keep, read_json, read_lines, split_arguments

from harness.sweep.places import visible_gpus

BENCH = yaml.safe_load((ROOT / "benchmarks" / "multi_gpu.yaml").read_text(encoding="utf-8"))
Entry = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A load on one GPU or on several."""

    load: str
    way: str
    """Of `strategies`, or ONE."""
    gpus: int
    """That it is for; one process has so many micro-batches."""

    @property
    def is_single(self) -> bool:
        """Says whether one process runs."""
        return self.way == ONE

    @property
    def key(self) -> str:
        """Names the run."""
        return f"{self.load} {self.way} {self.gpus}"

    def overrides(self) -> list[str]:
        """Returns the command line."""
        load = BENCH["loads"][self.load]
        last, profiled = BENCH["steps"], BENCH["profiled_steps"]
        micro_batches = 1 if load.get("one_batch") else self.gpus
        spread = f"trainer.accumulate={micro_batches}" if self.is_single else f"trainer.devices={self.gpus}"
        way = [] if self.is_single else BENCH["strategies"][self.way]
        return [
            *BENCH["common"],
            f"model.path={BENCH['shapes'][load['shape']]}",
            f"trainer.max_steps={last}",
            f"trainer.log_every_steps={BENCH['window_steps']}",
            f"trainer.profile_steps=[{last - profiled + 1},{last}]",
            *load["overrides"],
            spread,
            *(item.format(gpus=self.gpus) for item in way),
        ]


def plan(loads: list[str], gpus: int) -> Iterator[Run]:
    """Yields the runs of loads, what others are held against first."""
    for load in loads:
        for way in [ONE, *BENCH["loads"][load]["strategies"]]:
            yield Run(load, way, gpus)


def figures(rows: list[Entry]) -> Entry:
    """Returns the median speed over windows between warm-up and profile, and the losses of all steps.

    Args:
        rows: Of metrics.jsonl, one a step; the last of a window has the window's speed.
    """
    last = BENCH["steps"] - BENCH["profiled_steps"]
    windows = [row for row in rows if "perf/tokens_per_s" in row and BENCH["warmup_steps"] < row["step"] <= last]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    if not windows:
        return {"losses": losses}
    speeds = [row["perf/tokens_per_s"] for row in windows]
    return {
        "losses": losses,
        "tokens_per_s": statistics.median(speeds),
        "tokens_per_s_min": min(speeds),
        "tokens_per_s_max": max(speeds),
        "step_time_s": statistics.median(row["perf/step_time_s"] for row in windows),
    }


def measure(run: Run, more: Sequence[str], out: Path, env: Mapping[str, str]) -> Entry:
    """Runs, shows and returns what is kept.

    Args:
        run: What is run.
        more: Overrides of this call.
        out: The folder of the runs.
        env: Added to the environment.
    """
    chosen = [*run.overrides(), *more]
    folder = out / f"{run.key.replace(' ', '_')}_{time.time_ns()}"
    outcome = run_harness(chosen, folder, BENCH["limit_s"], env)
    rows = [json.loads(line) for line in read_lines(folder / "metrics.jsonl")]
    profile = read_json(folder / "profile" / "kernels.json", {"groups": {}})
    made = {
        "key": run.key,
        "load": run.load,
        "way": run.way,
        "gpus": run.gpus,
        "command": shlex.join(["python", "-m", "harness", *chosen]),
        "status": outcome.status,
        "error": outcome.error,
        **figures(rows),
        **{key: outcome.summary.get(key) for key in ("peak_allocated_gib", "trainable_parameters", "total_parameters")},
        "communication_ms": profile["groups"].get("communication", 0.0),
        **card_and_versions(outcome.environment, ("torch", "transformers")),
    }
    print(f"{run.key}: {' '.join(_words(made))}; {folder}", flush=True)
    return made


def _words(made: Entry) -> Iterator[str]:
    if made["error"]:
        yield str(made["error"]).splitlines()[0]
    elif "tokens_per_s" in made:
        yield f"{made['tokens_per_s']:,.0f} tokens/s, {1e3 * made['step_time_s']:,.0f} ms a step,"
        yield f"{made['communication_ms']:.1f} ms of collectives, {made['peak_allocated_gib'] or 0:.1f} GiB,"
        yield f"last loss {made['losses'][-1]:.5f}"


def measure_on_each(run: Run, more: Sequence[str], out: Path) -> Entry:
    """Runs one process on every GPU at once, for cards differ; returns what is kept: averages of their speeds.

    Args:
        run: What is run.
        more: Overrides of this call.
        out: The folder of the runs.
    """
    names = visible_gpus() or [str(number) for number in range(run.gpus)]
    own = [{"CUDA_VISIBLE_DEVICES": name} for name in names[: run.gpus]]
    with ThreadPoolExecutor(run.gpus) as places:
        made = list(places.map(lambda env: measure(run, more, out / env["CUDA_VISIBLE_DEVICES"], env), own))
    failed = next((entry for entry in made if entry["status"] != "completed"), None)
    if failed is not None or not all("tokens_per_s" in entry for entry in made):
        return failed or made[0]
    means = {key: statistics.fmean(entry[key] for entry in made) for key in ("tokens_per_s", "step_time_s")}
    return made[0] | means | {"each_gpu": [entry["tokens_per_s"] for entry in made]}


def main() -> None:
    """Does what the first argument says."""
    arguments, more = split_arguments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "list", "render"))
    parser.add_argument("--gpus", type=int, default=2)
    shown = [name for name, load in BENCH["loads"].items() if load["shape"] != "tiny"]
    parser.add_argument("--only", nargs="*", default=shown, choices=list(BENCH["loads"]))
    parser.add_argument("--ways", nargs="*", help=f"of these strategies (and {ONE}) alone")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "multi_gpu", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the JSON files")
    args = parser.parse_args(arguments)
    runs = [run for run in plan(args.only, args.gpus) if not args.ways or run.way in args.ways]
    if args.command == "render":
        render(BENCH, ROOT / "docs")
    elif args.command == "list":
        print("\n".join(f"{run.key}:\n    {shlex.join(['python', '-m', 'harness', *run.overrides()])}" for run in runs))
    else:
        began = time.monotonic()
        ones: dict[str, Entry] = {}
        for run in runs:
            if time.monotonic() - began > args.limit_s:
                print(f"not begun: {run.key}", flush=True)
                continue
            if run.is_single:
                made = measure_on_each(run, more, args.out)
                if made["status"] == "completed" and "tokens_per_s" in made:
                    ones[run.load] = {"one": {key: made[key] for key in ("tokens_per_s", "step_time_s", "losses")}}
            else:
                made = measure(run, more, args.out, {}) | ones.get(run.load, {})
            if not more:
                keep(made, args.results, "multi_gpu")


if __name__ == "__main__":
    main()
