"""Measures training speed on one GPU and writes the tables of docs/performance.md from what was measured.

    python benchmarks/bench.py prepare
    python benchmarks/bench.py run
    python benchmarks/bench.py run --only 4b_lora 4b_lora_32k
    python benchmarks/bench.py run --only 4b_lora -- memory.checkpointing=true
    python benchmarks/bench.py list
    python benchmarks/bench.py render

Every workload of bench.yaml is a `python -m harness` of its own; its figures are read from its metrics.jsonl and
summary.json and go into docs/results/performance_<card>.json, where the later of two runs of a workload stays.
`prepare` makes the checkpoints of random weights and the data that the workloads name, where they are not there.
Overrides behind `--` are tried and shown, and not kept.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from gpu_watch import under_load, watched
from performance_tables import render
from process import ROOT, Outcome, card_and_versions, run_harness
from tables import keep, read_lines, split_arguments

BENCH = yaml.safe_load((ROOT / "benchmarks" / "bench.yaml").read_text(encoding="utf-8"))
RESULTS = ROOT / "docs" / "results"
PACKAGES = ("torch", "transformers", "peft", "lightning")
Entry = dict[str, Any]


def overrides(name: str) -> list[str]:
    """Returns a workload's command line."""
    workload = BENCH["workloads"][name]
    data = BENCH["data"][workload.get("data", "captions")]["folder"]
    steps = BENCH["warmup_steps"] + BENCH["windows"] * BENCH["window_steps"]
    return [
        *BENCH["common"],
        f"model.path={BENCH['shapes'][workload['shape']]}",
        f"data.train={data}/train.jsonl",
        f"trainer.max_steps={steps}",
        f"trainer.log_every_steps={BENCH['window_steps']}",
        *workload["overrides"],
    ]


def prepare(names: list[str]) -> None:
    """Makes what the workloads need and is not there."""
    chosen = [BENCH["workloads"][name] for name in names]
    for shape in sorted({workload["shape"] for workload in chosen}):
        folder = BENCH["shapes"][shape]
        if not (ROOT / folder / "config.json").is_file():
            _make("random_checkpoint.py", "--shape", shape, "--out", folder)
    for data in sorted({workload.get("data", "captions") for workload in chosen}):
        made = BENCH["data"][data]
        if not (ROOT / made["folder"] / "train.jsonl").is_file():
            _make("caption_workload.py", *made["options"], "--out", made["folder"])


def _make(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), *arguments], cwd=ROOT, check=True)


def figures(rows: list[Entry]) -> Entry:
    """Returns medians over the windows behind the warm-up, and the range of the speed.

    Args:
        rows: Of metrics.jsonl.
    """
    windows = [row for row in rows if "perf/tokens_per_s" in row and row["step"] > BENCH["warmup_steps"]]
    if not windows:
        return {}
    speeds = [row["perf/tokens_per_s"] for row in windows]
    names = sorted({name for row in windows for name in row if name.startswith("perf/")})
    medians = {name.removeprefix("perf/"): statistics.median(row[name] for row in windows) for name in names}
    return medians | {"tokens_per_s_min": min(speeds), "tokens_per_s_max": max(speeds), "windows": len(windows)}


def entry(name: str, chosen: list[str], outcome: Outcome, rows: list[Entry]) -> Entry:
    """Returns what is kept of a run."""
    environment = outcome.environment
    git = environment.get("git") or {}
    seen = card_and_versions(environment, PACKAGES)
    kept = ("train_loss", "peak_allocated_gib", "startup_time_s", "measured_peak_tflop_per_s", "trainable_parameters")
    return {
        "key": name,
        "command": shlex.join(["python", "-m", "harness", *chosen]),
        "status": outcome.status,
        "error": outcome.error,
        **figures(rows),
        **{key: outcome.summary.get(key) for key in kept},
        "device": seen["device"],
        "versions": seen["versions"]
        | {"python": environment.get("python"), "cuda": environment.get("device", {}).get("cuda")},
        "git": git.get("commit", "unknown")[:12] + (" and changes" if git.get("dirty") else ""),
    }


def measure(name: str, more: list[str], out: Path) -> Entry:
    """Runs a workload and shows its figures."""
    chosen = [*overrides(name), *more]
    folder = out / f"{name}_{time.time_ns()}"
    out.mkdir(parents=True, exist_ok=True)
    samples = folder.with_suffix(".csv")
    with watched(samples):
        outcome = run_harness(chosen, folder, BENCH["limit_s"], {})
    rows = [json.loads(line) for line in read_lines(folder / "metrics.jsonl")]
    made = entry(name, chosen, outcome, rows) | under_load(read_lines(samples))
    shown = ("tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "mfu", "peak_allocated_gib", "startup_time_s")
    shown += ("sm_clock_mhz", "power_w")
    words = ", ".join(f"{key} {made[key]:,.4g}" for key in shown if made.get(key) is not None)
    print(f"{name}: {made['error'] or words}; {folder}", flush=True)
    return made


def main() -> None:
    """Does what the first argument says."""
    arguments, more = split_arguments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "run", "list", "render"))
    parser.add_argument("--only", nargs="*", default=list(BENCH["workloads"]), choices=list(BENCH["workloads"]))
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args(arguments)
    if args.command == "render":
        render(BENCH, ROOT / "docs")
    elif args.command == "list":
        for name in args.only:
            print(f"{name}:\n    {shlex.join(['python', '-m', 'harness', *overrides(name)])}")
    else:
        prepare(args.only)
        for name in args.only if args.command == "run" else []:
            for _ in range(BENCH["workloads"][name].get("runs", 1)):
                made = measure(name, more, args.out)
            if not more:
                keep(made, args.results, "performance")


if __name__ == "__main__":
    main()
