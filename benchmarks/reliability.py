"""Kills runs, damages files, fuzzes and soaks, and writes docs/results/reliability.json and the table of its page.

OMP_NUM_THREADS=1 python benchmarks/reliability.py --kills 20 --saves 10 --damages 100 --signals 10 --disks 6
OMP_NUM_THREADS=1 python benchmarks/reliability.py --fuzz 10000 --mutations --soak 10
OMP_NUM_THREADS=1 python benchmarks/reliability.py --rank-kills 44 --rank-signals 50 --tracker-kills 20 \
    --clock-kills 20 --adapter-size
OMP_NUM_THREADS=1 python benchmarks/reliability.py --sweep --slurm --bad-rows --hostile --errors
python benchmarks/reliability.py --render

Only what is asked for is measured; the other rows keep what was measured before.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import torch
import whole_commands

from harness.experiment.environment import environment

ROOT = Path(__file__).parent.parent
COUNTED = {
    "rank_kills": ("rank_faults.py", "--kills"),
    "rank_signals": ("rank_faults.py", "--signals"),
    "tracker_kills": ("tracker_faults.py", "--kills"),
    "clock_kills": ("clock_faults.py", "--kills"),
}
"""Script and option of tries that are counted, by the row's key."""
RESULTS, PAGE = ROOT / "docs" / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by benchmarks/reliability.py -->", "<!-- end -->"


Found = dict[str, list[dict[str, Any]]]


def measure(options: argparse.Namespace, bench: faults.Bench) -> Iterator[Found]:
    """Runs each fault as often as asked, in turn, and yields what was found so far: an end in between loses nothing.

    Args:
        options: Of the command line.
        bench: The runs.
    """
    draw, modes = random.Random(options.seed), list(faults.MODES)
    kinds = [(kind, policy) for kind in ("limit", "foreseen", "unforeseen") for policy in ("continue", "stop")]
    if not faults.can_mount(bench.home):
        kinds = kinds[:2]
    plain, parts = bench.whole("lora")[0], faults.parts(bench.home)
    files = [
        (folder, path)
        for folder in (plain, parts)
        for path in (folder.checkpoints / "last").resolve().rglob("*")
        if path.is_file()
    ]

    def damage(number: int) -> dict[str, Any]:
        return faults.damaged(*files[number % len(files)], draw.choice([*faults.DAMAGES, *["flip"] * 4]), draw)

    asked: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
        "damage": (options.damages, damage),
        "kill": (
            options.kills,
            lambda number: faults.kill_at_random(bench, modes[number % len(modes)], f"kill_{number}", draw),
        ),
        "kill_in_save": (
            options.saves,
            lambda number: faults.kill_in_save(bench, ("lora", "background")[number % 2], f"save_{number}", draw),
        ),
        "signal": (
            options.signals,
            lambda number: faults.end_by_signal(bench, "lora", f"signal_{number}", after=1 + number % 4),
        ),
        "disk": (options.disks, lambda number: faults.without_room(bench, *kinds[number % len(kinds)], f"d_{number}")),
    }
    found: Found = {name: [] for name in asked}
    # The cheap ones first, the others in turn, so that there is something of each early on.
    order = [(number / count * (name != "damage"), name, number) for name, (count, _) in asked.items()
             for number in range(count)]  # fmt: skip
    for _, name, number in sorted(order):
        found[name].append(asked[name][1](number))
        print(f"{name} {number + 1} of {asked[name][0]}: {found[name][-1]}", flush=True)
        if name != "damage":
            yield found
    yield found


def others(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs what has a script of its own, each in a process, and yields its figures under the name of its row."""
    asked = {
        "mutations": ("mutated_configs.py", []) if options.mutations else None,
        "fuzz": ("fuzz.py", ["--cases", str(options.fuzz), "--seed", str(options.seed)]) if options.fuzz else None,
        "soak": ("soak.py", ["--minutes", str(options.soak)]) if options.soak else None,
        "adapter_size": ("adapter_size.py", []) if options.adapter_size else None,
    } | {name: (script, []) if getattr(options, name) else None for name, script in whole_commands.SCRIPTS.items()}
    for name, (script, option) in COUNTED.items():
        count = getattr(options, name)
        asked[name] = (script, [option, str(count), "--seed", str(options.seed)]) if count else None
    for name, (script, arguments) in ((name, item) for name, item in asked.items() if item is not None):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [f"benchmarks/{script}", *arguments]
            subprocess.run([sys.executable, *command, "--out", file.name], cwd=ROOT)
            figures = json.loads(Path(file.name).read_text(encoding="utf-8"))
        yield name, figures | {"command": _command([*command, "--out FILE"]), "environment": environment("")}


def _command(arguments: list[str]) -> str:
    return f"OMP_NUM_THREADS={torch.get_num_threads()} python {' '.join(arguments)}"


def table(result: dict[str, Any]) -> str:
    """Renders the figures beside what stock Lightning does."""
    found = result["found"]
    flips = [item for item in found["damage"] if item["kind"] == "flip" and item["file"] == faults.FILE]
    unseen = sum(item["torch_loads"] for item in flips)
    seconds = max((item["seconds"] for item in found["signal"]), default=0.0)
    kinds = ", ".join(sorted({f"{item['kind']}/{item['policy']}" for item in found["disk"]}))
    modes = ", ".join(dict.fromkeys(item["mode"] for item in found["kill"]))
    rows = [
        (
            f"kill -9 at a random moment, resume: losses, validation and exported weights ({modes}; dropout on)",
            "bit-identical",
            # A kill that came when all was done is none.
            _share([item for item in found["kill"] if item["killed"]]),
            "differs at the first step (1)",
        ),
        (
            "kill -9 in the save window, at a random write, fsync or rename; resume",
            "all resume from a whole one",
            _share(found["kill_in_save"]),
            "destroyed at the first (1)",
        ),
        (
            f"disk full in a save ({kinds})",
            "training goes on or stops as told; old ones verify",
            _share(found["disk"]),
            "destroyed (1)",
        ),
        (
            "flip, cut, delete, empty, grow, add: each file of the newest checkpoint, a file or torch's parts",
            "all detected, all fall back",
            _share(found["damage"]),
            f"torch.load took {unseen} of {len(flips)} flipped trainer.ckpt without an error (2)",
        ),
        (
            "SIGTERM to exit, one process: saved, code 143, `preempted`, resumes bit-identical",
            "under 30 s",
            f"{_share(found['signal'])}, at most {seconds:.1f} s",
            "not measured",
        ),
        (
            "training stands still for a save of 0.7 MB, longest: at once; with `trainer.async_save=true`",
            "reported",
            f"{1e3 * result['stall_s']['lora']:.0f} ms; {1e3 * result['stall_s']['background']:.0f} ms",
            "the whole write",
        ),
    ]
    rows += [row(result[name]) for name, row in OTHER_ROWS.items() if name in result]
    lines = ["| figure | target | ours | stock Lightning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    machine = f"`{result['command']}`, {result['seconds']:.0f} s on {result['cores']} shared cores; torch "
    note = (
        "A measurement that was ended early has fewer of each than its command asks for. "
        "(1) As reproduced with lightning 2.6.6 before this harness was written; not measured by this script. "
        "(2) Measured by this script, on the file of this harness."
    )
    commands = ", ".join(f"`{result[name]['command']}`" for name in OTHER_ROWS if name in result)
    text = machine + f"{result['environment']['packages']['torch']}, on the CPU. {note}"
    return "\n".join([*lines, "", text + (f" The last rows: {commands}." if commands else "")])


def _fuzz_row(found: dict[str, Any]) -> tuple[str, ...]:
    families = ", ".join(f"{sum(kinds.values()):,} {name}" for name, kinds in found["counts"].items())
    right = found["cases"] - len(found["wrong"])
    return (
        f"hostile or broken input files, fuzzed ({families})",
        "no crash without a message, no hang, nothing counted wrongly",
        f"{right:,} of {found['cases']:,}, at most {found['longest_s']:.1f} s a case",
        "not measured",
    )


def _mutations_row(found: dict[str, Any]) -> tuple[str, ...]:
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in found["kinds"].items())
    return (
        f"each of {found['keys']} config keys in each option of its group, wrong in turn ({kinds})",
        "all refused with the key in the message, before the model loads",
        f"{found['refused']:,} of {found['tried']:,}, {' and '.join(found['loaded']) or 'nothing'} loaded",
        "no typed config",
    )


def _soak_row(found: dict[str, Any]) -> tuple[str, ...]:
    memory, real = found["rss_mib"], found["ten_hours"]
    held = ", ".join(f"{found[name]['first']:.0f} to {found[name]['last']:.0f} {name}" for name in ("files", "threads"))
    return (
        f"{found['minutes']:.0f} minutes of tiny steps in one process: {found['steps']:,} steps, "
        f"{found['validations']:,} validations and as many checkpoints due (ten hours of a real run: "
        f"{real['steps']:,} steps, {real['saves']} of each)",
        "memory, open files and threads flat",
        f"first to last tenth: {memory['first']:.1f} to {memory['last']:.1f} MiB resident, {held}; "
        f"{memory['slope_per_hour']:.1f} MiB an hour",
        "not measured",
    )


def _rank_kills_row(found: dict[str, Any]) -> tuple[str, ...]:
    hit = [item for item in found["found"] if item["killed"]]
    modes = dict.fromkeys(item["mode"].removesuffix(", workers") for item in hit)
    left_out = "" if "zero3" in modes else "; ZeRO left out, DeepSpeed is not installed"
    one = sum(item["way"] == "one" for item in hit)
    return (
        f"kill -9 of all processes, or of one ({one} times; the others end by themselves), resume: "
        f"{', '.join('data workers' if mode == 'workers' else mode for mode in modes)}; two ranks on gloo but for the "
        f"first two, each with and without data workers{left_out}",
        "bit-identical",
        _share(hit),
        "differs at the first step (1)",
    )


def _rank_signals_row(found: dict[str, Any]) -> tuple[str, ...]:
    seconds = max(item["seconds"] for item in found["found"])
    return (
        "SIGTERM and SIGUSR1 to two ranks (ddp, gloo), to who started them or to all: saved, code 143 or 138, "
        "`preempted`, resumes bit-identical",
        "50 of 50, at most one step lost",
        f"{_share(found['found'])}, no step lost, at most {seconds:.1f} s",
        "7 of 8 hang (1)",
    )


def _tracker_kills_row(found: dict[str, Any]) -> tuple[str, ...]:
    hit = [item for item in found["found"] if item["killed"]]
    by_tracker = [
        f"{_share([item for item in hit if item['mode'] == mode])} ({mode})" for mode in ("tensorboard", "wandb")
    ]
    return (
        "kill -9, resume: metrics.jsonl and TensorBoard's events or W&B's offline record have each step, and its loss",
        "every step once, one run id",
        ", ".join(by_tracker),
        "tail lost (1)",
    )


def _clock_kills_row(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        "time of day jumps by up to 12 hours, 20 times a second, through a run, kill -9 and resume; times of "
        "checkpoints are drawn anew",
        "bit-identical, newest checkpoint, right seconds, no limit fires",
        _share(found["found"]),
        "not measured",
    )


def _adapter_size_row(found: dict[str, Any]) -> tuple[str, ...]:
    (first, *_), ratios = found["found"], ", ".join(f"{item['ratio']:.2f} {item['mode']}" for item in found["found"])
    return (
        f"bytes of a LoRA checkpoint to those of its {first['trained']:,} weights and Adam's moments",
        "at most 1.2",
        f"{ratios}; the strategies on two ranks, ZeRO-2 with DeepSpeed's own copy of the weights",
        "the whole model (1)",
    )


OTHER_ROWS: dict[str, Callable[[dict[str, Any]], tuple[str, ...]]] = {
    "fuzz": _fuzz_row,
    "mutations": _mutations_row,
    "soak": _soak_row,
    "rank_kills": _rank_kills_row,
    "rank_signals": _rank_signals_row,
    "tracker_kills": _tracker_kills_row,
    "clock_kills": _clock_kills_row,
    "adapter_size": _adapter_size_row,
    **whole_commands.ROWS,
}
"""What has a script of its own, by its key in the results."""


def _share(items: list[dict[str, Any]]) -> str:
    return f"{sum(item['ok'] for item in items)} of {len(items)}"


def render(result: dict[str, Any]) -> None:
    """Puts the table into its page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    """Returns 0 where every figure is met."""
    parser = argparse.ArgumentParser()
    for name in ("kills", "saves", "damages", "signals", "disks", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--fuzz", type=int, default=0, help="cases of fuzz.py")
    parser.add_argument("--mutations", action="store_true", help="run mutated_configs.py")
    for name, (script, option) in COUNTED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=0, help=f"{option} of {script}")
    parser.add_argument("--adapter-size", action="store_true", help="run adapter_size.py")
    parser.add_argument("--soak", type=float, default=0, help="minutes of soak.py")
    for name, script in whole_commands.SCRIPTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=f"run {script}")
    parser.add_argument("--render", action="store_true", help="only write the table of what was measured")
    options = parser.parse_args()
    if options.render:
        render(json.loads(RESULTS.read_text(encoding="utf-8")))
        return 0
    right = True
    for name, figures in others(options):
        write({name: figures})
        right = right and not figures.get("wrong") and figures.get("ok", True) and not figures.get("loaded")
    if any((options.kills, options.saves, options.damages, options.signals, options.disks)):
        right = _faults(options) and right
    return 0 if right else 1


def _faults(options: argparse.Namespace) -> bool:
    """Measures what faults.py does, and says whether all of it is right."""
    # Imported before the forks, or each run would do so.
    import harness.experiment.train  # noqa: F401

    began, right = time.monotonic(), False
    with tempfile.TemporaryDirectory() as home:
        bench = faults.Bench(Path(home))
        stall = {
            mode: bench.whole(mode)[0].read_summary()["saves"]["longest_stall_s"] for mode in ("lora", "background")
        }
        for found in measure(options, bench):
            counts = {name: [sum(item["ok"] for item in items), len(items)] for name, items in found.items() if items}
            write(
                {
                    "command": _command([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
                    "seconds": time.monotonic() - began,
                    "cores": os.cpu_count(),
                    "environment": environment(""),
                    "counts": counts,
                    "stall_s": stall,
                    "found": {name: found[name] for name in counts},
                }
            )
            right = all(item["ok"] for items in found.values() for item in items)
    return right


def write(measured: dict[str, Any]) -> None:
    """Writes what was measured beside what is there of other rows, and the table."""
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for key in ("counts", "found"):
        if key in measured:
            measured[key] = result.get(key, {}) | measured[key]
    result |= measured
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    render(result)


if __name__ == "__main__":
    sys.exit(main())
