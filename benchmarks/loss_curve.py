"""Holds the loss curve of our steps against transformers' own forward pass, and that of a float8 base against bfloat16.

    python benchmarks/loss_curve.py run --out docs/results/loss_curve_h200.json
    python benchmarks/loss_curve.py run --shape tiny --steps 20 --only stock stock_eager ours --out outputs/curve.json
    python benchmarks/loss_curve.py show docs/results/loss_curve_h200.json

One process; each variant has the same random weights of a true shape, the same LoRA without dropout and the same
packed batches of the image-caption workload, none of them twice. `stock` is transformers' forward pass with PEFT's
modules, and `stock_eager` the same with another attention kernel. `exact` is `stock` in float32, from the same weights:
what a bfloat16 curve is to come near to. Rounding after each operation, which compiled blocks do not do, loses updates
that are small beside what they are added to, and so moves a curve, the same way with every kernel.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from cpu_bench import stock_inputs
from memory_table import CAPTIONS, TINY, Batches, Job, prepared, release, wait

from harness import registry
from harness.compose import compose_config
from harness.config import RunConfig, to_run_config
from harness.data.batch import Batch
from harness.trainer.standard import training_device

COMMON = [
    *(
        "model=qwen3_vl",
        "model.path=harness:tiny",
        "data=jsonl",
        f"data.train={CAPTIONS}/train.jsonl",
        "data.packing=true",
    ),
    *(
        "data.packing_length=2048",
        "data.workers=8",
        "trainer.batch_size=1",
        "tuner=lora",
        "tuner.dropout=0",
        "optim.lr=1e-4",
    ),
]
STOCK = ["tuner.fused=false", "trainer.compile=false"]
STOCK_FORWARD = ("stock", "stock_eager", "exact")
VARIANTS: dict[str, list[str]] = {
    "stock": [*STOCK, "model.attention=sdpa"],
    "stock_eager": [*STOCK, "model.attention=eager"],
    "exact": [*STOCK, "model.attention=sdpa"],
    "ours": [],
    "ours_eager": ["trainer.compile=false"],
    "ours_sdpa": ["model.attention=sdpa"],
    "fp8": ["memory=fp8_base"],
}
PAIRS = [
    *(("stock_eager", "stock"), ("ours_eager", "stock"), ("ours", "stock")),
    *(("stock", "exact"), ("ours", "exact"), ("fp8", "exact")),
    *(("ours_sdpa", "ours"), ("fp8", "ours")),
]
"""Which curve is held against which."""


def config_of(variant: str, tiny: bool) -> RunConfig:
    """Returns the config of a variant's steps."""
    return to_run_config(compose_config([*COMMON, *VARIANTS[variant], *(TINY if tiny else [])]))


def packed(config: RunConfig, count: int, tiny: bool) -> list[Batch]:
    """Returns batches on the CPU."""
    data = prepared(config, count, tiny)
    return [batch for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def curve(variant: str, shape: str, batches: list[Batch], device: torch.device) -> dict[str, Any]:
    """Trains a variant, a step a batch, and returns its losses and speed."""
    config = config_of(variant, shape == "tiny")
    torch.manual_seed(0)
    job = Job(shape, config, batches[:1], device, predicts=False)
    if variant == "exact":
        job.model.float()
        job.autocast = None
    if variant in STOCK_FORWARD:
        job.tuned.base.set_attn_implementation(config.model.attention.name)
        job.tuned.base.config.text_config.use_cache = False
        job.loss = lambda batch: job.tuned.model(**stock_inputs(batch)).loss  # type: ignore[method-assign]
    job.batches = batches
    wait(device)
    began = time.perf_counter()
    losses = []
    for number in range(len(batches)):
        job.step(number)
        losses.append(job.last_loss)
    found = torch.stack(losses).tolist()  # type: ignore[arg-type]
    return {"losses": found, "seconds": time.perf_counter() - began}


def difference(losses: list[float], reference: list[float]) -> dict[str, float]:
    """Returns how far a curve lies from another one, in nats, over the steps that both have."""
    apart = [ours - theirs for ours, theirs in zip(losses, reference, strict=False)]
    last = max(len(apart) // 10, 1)
    return {
        "steps": len(apart),
        "mean": statistics.fmean(apart),
        "rms": statistics.fmean(value * value for value in apart) ** 0.5,
        "largest": max(map(abs, apart)),
        "last_tenth": statistics.fmean(apart[-last:]),
    }


def run(args: argparse.Namespace) -> None:
    """Trains the variants one after the other and writes what came out."""
    registry.load()
    tiny = args.shape == "tiny"
    Batches(tiny)  # Makes the captions where they are not there.
    device = training_device(config_of("ours", tiny).trainer, 0)
    batches = packed(config_of("ours", tiny), args.steps, tiny)
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": args.shape,
        "curves": before["curves"] if before.get("shape") == args.shape else {},
    }
    for variant in args.only:
        steps = args.stock_steps if variant in STOCK_FORWARD else args.steps
        result["curves"][variant] = curve(variant, args.shape, batches[:steps], device)
        release()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    show(args.out)


def show(path: Path) -> None:
    """Prints the differences as the table of docs/performance.md."""
    curves = json.loads(path.read_text(encoding="utf-8"))["curves"]
    print("| curve | against | steps | mean | root mean square | largest | mean of the last tenth |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for variant, reference in PAIRS:
        if variant in curves and reference in curves:
            found = difference(curves[variant]["losses"], curves[reference]["losses"])
            steps = found.pop("steps")
            print(f"| {variant} | {reference} | {steps} | " + " | ".join(f"{v:+.5f}" for v in found.values()) + " |")


def main() -> None:
    """Does what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--shape", default="4b", help="of random_checkpoint.py, or tiny")
    command.add_argument("--steps", type=int, default=200)
    command.add_argument("--stock-steps", type=int, default=50, help="steps of stock and exact, which are slow")
    command.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    command = commands.add_parser("show")
    command.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.command == "run":
        run(args)
    else:
        show(args.results)


if __name__ == "__main__":
    main()
