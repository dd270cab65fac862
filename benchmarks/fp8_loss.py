"""Trains the same run in bfloat16, in bfloat16 on another attention kernel, and with a float8 base.

    python benchmarks/fp8_loss.py --out outputs/fp8_loss.json -- model.dtype=bfloat16 trainer.max_steps=200
    python benchmarks/fp8_loss.py --out outputs/fp8_loss_4b.json -- experiment=bench_4b trainer.max_steps=200

Writes the losses and, against the first run, mean difference, root mean square and the difference of the last tenth.
The second run says how much of that is bfloat16's own noise. 4B's rows need `benchmarks/caption_workload.py` first.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

RUNS = {
    "bf16": ["memory=standard"],
    "bf16_other_kernel": ["memory=standard", "model.attention=sdpa"],
    "fp8": ["memory=fp8_base"],
}


def train(overrides: list[str], folder: Path) -> list[float]:
    """Runs the harness and returns the loss of each step."""
    command = [sys.executable, "-m", "harness", *overrides, f"hydra.run.dir={folder}", "trainer.checkpoints=false"]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["train/loss"] for row in rows if row["step"]]


def difference(losses: list[float], reference: list[float]) -> dict[str, float]:
    """Returns how far a curve lies from another one, in nats."""
    apart = [ours - theirs for ours, theirs in zip(losses, reference, strict=True)]
    last = max(len(apart) // 10, 1)
    return {
        "mean": statistics.fmean(apart),
        "rms": statistics.fmean(value * value for value in apart) ** 0.5,
        "last_tenth": statistics.fmean(apart[-last:]),
    }


def main() -> None:
    """Runs the three and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    folders = {name: arguments.out.with_suffix("") / name for name in RUNS}
    losses = {name: train([*arguments.overrides, *own], folders[name]) for name, own in RUNS.items()}
    summaries = {name: json.loads((folder / "summary.json").read_text()) for name, folder in folders.items()}
    result = {
        "overrides": arguments.overrides,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "difference": {name: difference(losses[name], losses["bf16"]) for name in RUNS if name != "bf16"},
        "val": {name: summary["val"] for name, summary in summaries.items()},
        "tokens_per_s": {name: summary["tokens_per_s"] for name, summary in summaries.items()},
        "peak_allocated_gib": {name: summary["peak_allocated_gib"] for name, summary in summaries.items()},
        "losses": losses,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("difference", "tokens_per_s", "val")}, indent=2))


if __name__ == "__main__":
    main()
