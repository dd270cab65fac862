"""Measures every tuner and optimiser, and writes the tables of docs/tuners.md from what was measured.

    python benchmarks/tuner_table.py count
    python benchmarks/tuner_table.py digits --jobs 2
    python benchmarks/tuner_table.py gpu
    python benchmarks/tuner_table.py render outputs/tuner_table/results.jsonl

Every run on digits is a `python -m harness` of its own; those on a GPU share a process (tuner_gpu.py). A run's figures
are a line of results.jsonl; runs that are there are not run again, failed ones are. `render` takes the lines of files
that it is given into docs/results/, and makes the tables of what is there. Methods and settings: tuner_table.yaml.
Learning rates are chosen on rows that the report never sees: `data.held_out` validates on training rows, which then do
not train; the report's 360 validate the three seeds.
"""

import argparse
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import yaml
from process import run_harness
from tuner_tables import best_rate, render

ROOT = Path(__file__).parent.parent
TABLE = yaml.safe_load((ROOT / "benchmarks" / "tuner_table.yaml").read_text(encoding="utf-8"))
SEEDS = (1, 2, 3)
HELD_OUT = 360
LIMIT_S = 900
"""Seconds after which a run is ended and counts as failed."""
DIGITS = [
    *("model=tiny", "data=digits", "data.workers=0", "trainer.accelerator=cpu", "trainer.max_steps=120"),
    *("trainer.val_every_steps=120", "trainer.batch_size=16", "trainer.val_at_start=false"),
    "optim.schedule.warmup_ratio=0.05",
]
GPU = [
    *("experiment=bench_4b", "data.packing=true", "data.packing_length=8192", "trainer.batch_size=1"),
    "trainer.max_steps=20",
]


@dataclass(frozen=True)
class Run:
    """One run and where its figures belong."""

    table: str
    """digits, gpu or optimizers."""
    method: str
    phase: str
    """choose (a learning rate) or report."""
    lr: float | None
    seed: int
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the run by all that decides it."""
        digest = hashlib.sha1(" ".join(self.overrides).encode(), usedforsecurity=False).hexdigest()[:8]
        return f"{self.table}_{self.method}_{self.phase}_{digest}"


class Book:
    """Results so far, a line a run; a run of the same key comes later and wins."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "results.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.entries = {entry["key"]: entry for entry in map(json.loads, lines)}
        self._lock = Lock()

    def add(self, entry: dict[str, Any]) -> None:
        """Appends an entry and shows it."""
        with self._lock:
            self.entries[entry["key"]] = entry
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        shown = entry["error"] or f"{entry['val']} {entry['tokens_per_s']:,.0f} tokens/s"
        print(f"{entry['key']} lr {entry['lr']} seed {entry['seed']}: {entry['status']}, {shown}", flush=True)

    def done(self, run: Run) -> bool:
        """Says whether the run completed before."""
        return self.entries.get(run.key, {}).get("status") == "completed"

    def measure(self, runs: list[Run], jobs: int, deadline: float) -> None:
        """Runs what is not done, `jobs` at a time; none starts behind the deadline (a `time.monotonic()`)."""
        with ThreadPoolExecutor(jobs) as pool:
            for run in runs:
                if not self.done(run):
                    pool.submit(self._one, run, deadline)

    def _one(self, run: Run, deadline: float) -> None:
        if time.monotonic() < deadline:
            self.add(measure(run, self.folder / "runs" / run.key))


def measure(run: Run, folder: Path) -> dict[str, Any]:
    """Runs one trial, or goes on with it, and returns its entry."""
    # On digits one CPU thread, for the tiny model gains nothing from more.
    threads = {"OMP_NUM_THREADS": "1"} if run.table == "digits" else {}
    outcome = run_harness([*run.overrides, "trainer.resume=auto"], folder, LIMIT_S, threads)
    return (
        entry(run)
        | {
            "status": outcome.status,
            "error": outcome.error,
            "peak_rss_gib": outcome.usage.ru_maxrss / 2**20,
            "cpu_time_s": outcome.usage.ru_utime + outcome.usage.ru_stime,
            "device": outcome.environment.get("device", {}).get("name"),
        }
        | {
            key: outcome.summary.get(key)
            for key in ("val", "trainable_parameters", "tokens_per_s", "wall_time_s", "peak_allocated_gib")
        }
    )


def entry(run: Run) -> dict[str, Any]:
    """Returns what names a run among the results."""
    return {
        "key": run.key,
        "table": run.table,
        "method": run.method,
        "phase": run.phase,
        "lr": run.lr,
        "seed": run.seed,
        "overrides": list(run.overrides),
    }


def digits_runs(name: str, phase: str, lrs: list[float], seeds: tuple[int, ...]) -> list[Run]:
    """Returns a method's runs on digits, one for each rate and seed."""
    method = TABLE["methods"][name]
    chosen = [*DIGITS, *method["choice"], *method.get("digits", [])]
    held_out = [f"data.held_out={HELD_OUT}"] if phase == "choose" else []
    return [
        Run("digits", name, phase, lr, seed, (*chosen, *held_out, f"optim.lr={lr}", f"seed={seed}"))
        for lr in lrs
        for seed in seeds
    ]


def chosen_rate(book: Book, name: str) -> list[float]:
    """Returns the rate that the runs on held-out rows chose, none if all of them failed."""
    runs = [book.entries.get(run.key) for run in digits_runs(name, "choose", rates(name), (0,))]
    rate = best_rate(entry for entry in runs if entry is not None)
    return [] if rate is None else [rate]


def rates(name: str) -> list[float]:
    """Returns the learning rates to try."""
    return [float(lr) for lr in TABLE["methods"][name].get("lrs", TABLE["lrs"])]


def digits(args: argparse.Namespace, methods: list[str]) -> None:
    """Chooses a learning rate for each method, then trains it with three seeds."""
    book, deadline = Book(args.out), time.monotonic() + args.stop_after
    book.measure(
        [run for name in methods for run in digits_runs(name, "choose", rates(name), (0,))], args.jobs, deadline
    )
    report = [run for name in methods for run in digits_runs(name, "report", chosen_rate(book, name), SEEDS)]
    book.measure(report, args.jobs, deadline)


def gpu(args: argparse.Namespace, methods: list[str]) -> None:
    """Trains each tuner, and each optimiser on all weights of the LLM, for 20 steps on a true shape in one process."""
    from tuner_gpu import Bench

    runs = [
        Run("gpu", name, "report", None, 42, (*GPU, *method["choice"], *method.get("gpu", [])))
        for name, method in TABLE["methods"].items()
        if name in methods
    ]
    runs += [
        Run("optimizers", name, "report", None, 42, (*GPU, "tuner=full", *choice))
        for name, choice in TABLE["optimizers"].items()
        if not args.only or name in args.only
    ]
    book, bench, deadline = Book(args.out), Bench(args.shape), time.monotonic() + args.stop_after
    for run in runs:
        if not book.done(run) and time.monotonic() < deadline:
            book.add(entry(run) | bench.measure(list(run.overrides)))


def count(methods: list[str]) -> None:
    """Prints the trained parameters of each method on the tiny model, and how far they are from the budget."""
    import torch

    from harness import registry
    from harness.compose import compose_config
    from harness.config import to_run_config
    from harness.data.assemble import data_module
    from harness.model.processor import load_processor
    from harness.tuner.outlook import Outlook

    registry.load()
    for name in methods:
        config = to_run_config(compose_config(digits_runs(name, "report", [1e-3], (1,))[0].overrides))
        data = data_module(config, load_processor(config.model))
        data.prepare()
        loaded = registry.build("model", config.model)
        policy = registry.build("freeze", config.freeze, loaded.model)
        start = Path(os.devnull)
        outlook = Outlook(config.trainer.max_steps, data.calibration_batches, torch.device("cpu"), start)
        tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
        trained = sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)
        print(f"{name:12} {trained:>9,} {100 * (trained / TABLE['budget'] - 1):+7.1f} %", flush=True)


def main() -> None:
    """Does what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("count", "digits", "gpu"):
        command = commands.add_parser(name)
        command.add_argument("--only", nargs="*", default=[], help="methods (and optimisers), all if left out")
        command.add_argument("--out", type=Path, default=ROOT / "outputs" / "tuner_table")
        command.add_argument("--stop-after", type=float, default=1e9, help="seconds after which no run starts")
        command.add_argument("--jobs", type=int, default=1, help="runs at a time (digits)")
        command.add_argument("--shape", default="4b", help="of random_checkpoint.py, or tiny (gpu)")
    command = commands.add_parser("render")
    command.add_argument("results", type=Path, nargs="*")
    args = parser.parse_args()
    if args.command == "render":
        render(args.results, TABLE, ROOT / "docs")
        return
    methods = [name for name in TABLE["methods"] if not args.only or name in args.only]
    {"count": lambda: count(methods), "digits": lambda: digits(args, methods), "gpu": lambda: gpu(args, methods)}[
        args.command
    ]()


if __name__ == "__main__":
    main()
