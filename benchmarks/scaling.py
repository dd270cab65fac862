"""Calculates what several GPUs should give, from the measured steps of one, and writes the tables of docs/scaling.md.

    python benchmarks/scaling.py

Nothing here is measured but the single card's step (docs/results/memory_*.json). A step on N GPUs, each with a
micro-batch like that one:

    sent       bytes that a GPU sends: ring collectives move (N - 1) / N of a tensor, an all-reduce twice
    talk       sent / bandwidth + collectives x log2 N x latency
    exposed    max(0, talk - overlap x compute), and all of what is sent behind the backward pass
    step       compute + exposed,  efficiency = compute / step

T trained values go as float32 gradients (4 T); P values of the model are gathered in bfloat16 (2 P), once for the
forward and once for the backward pass. `hybrid` splits within a node of 8 and adds gradients up between nodes. Under
fsdp2 adapters are whole everywhere, and their gradients are summed behind the backward pass.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from process import ROOT
from tables import fill, markdown, read_json

from harness.memory.strategy.fsdp2 import Fsdp2Config
from harness.trainer.reduction import BUCKET

NODE = 8
"""GPUs that NVLink joins."""
INSIDE, BETWEEN = 360e9, 45e9
"""Bytes a GPU sends in a second: 80 % of NVLink 4's 450 GB/s, and 90 % of 400 Gb/s InfiniBand for each GPU."""
LATENCY_S = 10e-6
"""Of one hop of a collective."""
BACKWARD, WHOLE = 0.6, 0.9
"""Share of a step that can hide talk: DDP's and ZeRO's within the backward pass, gathers in all but the ends."""
GIB = 2**30
SIZES = (8, 64, 512)
Entry = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """A measured step of one GPU."""

    name: str
    parameters: int
    trained: int
    layers: int
    compute_s: float
    tokens: float
    """Of samples, in a step."""
    weights_gib: float
    gradients_gib: float
    state_gib: float
    rest_gib: float
    """Activations and all else."""


@dataclass(frozen=True)
class Talk:
    """What a strategy sends in a step from one GPU."""

    inside: float = 0.0
    """Bytes within a node."""
    between: float = 0.0
    """Bytes between nodes."""
    collectives: int = 0
    overlap: float = BACKWARD
    behind: float = 0.0
    """Bytes that go when nothing computes any more."""


def load_of(entry: Entry) -> Load:
    """Reads a line of memory_table.py."""
    parts = entry["parts_gib"]
    fixed = [parts[key] for key in ("weights", "gradients", "optimizer")]
    seconds = entry["step_ms"] / 1e3
    layers = 28 if entry["key"].startswith("2b") else 36
    return Load(
        entry["key"],
        entry["parameters"],
        entry["trainable"],
        layers,
        seconds,
        entry["tokens_per_s"] * seconds,
        *fixed,
        entry["peak_allocated_gib"] - sum(fixed),
    )


def ring(size: float, ranks: int) -> float:
    """Returns the bytes that a GPU sends to gather or to reduce-scatter a tensor of so many bytes."""
    return size * (ranks - 1) / ranks


def talk(strategy: str, load: Load, ranks: int) -> Talk:
    """Returns what a strategy sends."""
    gradients, gathers = 4.0 * load.trained, 2 * 2.0 * load.parameters
    if strategy in ("ddp", "zero1", "zero2"):
        sent = 2 * ring(gradients, ranks)
        buckets = max(1, math.ceil(gradients / 25e6))
        return _placed(sent, ranks, buckets, BACKWARD)
    whole = _keeps_adapters(strategy, load)
    reduced, behind = (0.0, 2 * ring(gradients, ranks)) if whole else (gradients, 0.0)
    collectives = (2 if whole else 3) * load.layers
    if strategy in ("fsdp2", "zero3"):
        return replace(_placed(ring(gathers + reduced, ranks), ranks, collectives, WHOLE), behind=behind)
    nodes = max(1, ranks // NODE)
    within, between = ring(gathers + reduced, min(ranks, NODE)), 2 * ring(reduced / NODE, nodes)
    return Talk(within, between, collectives + (0 if whole else load.layers), WHOLE, behind)


def _keeps_adapters(strategy: str, load: Load) -> bool:
    share = 4 * load.trained / (2 * load.parameters + 2 * load.trained)
    return strategy in ("fsdp2", "hybrid") and Fsdp2Config().replicates(share)


def _placed(sent: float, ranks: int, collectives: int, overlap: float) -> Talk:
    return Talk(sent, 0.0, collectives, overlap) if ranks <= NODE else Talk(0.0, sent, collectives, overlap)


def seconds(said: Talk, load: Load, ranks: int, inside: float = INSIDE) -> tuple[float, float]:
    """Returns how long the talk takes and how much of it shows; `inside`: bytes a GPU sends in a second in a node."""
    beside = said.inside / inside + said.between / BETWEEN + said.collectives * math.log2(ranks) * LATENCY_S
    behind = said.behind / (inside if ranks <= NODE else BETWEEN)
    return beside + behind, behind + max(0.0, beside - said.overlap * load.compute_s)


def memory_gib(strategy: str, load: Load, ranks: int) -> float:
    """Returns what a GPU holds."""
    weights, gradients, state = load.weights_gib, load.gradients_gib, load.state_gib
    split = min(ranks, NODE) if strategy == "hybrid" else ranks
    layer = load.weights_gib / load.layers
    kept = 0.0
    if _keeps_adapters(strategy, load):
        adapters = 4 * load.trained / GIB
        kept = adapters + gradients + min(gradients, 4 * BUCKET / GIB) + state
        weights, gradients, state = weights - adapters, 0.0, 0.0
    held = {
        "ddp": weights + gradients + state,
        "zero1": weights + gradients + state / ranks,
        "zero2": weights + (gradients + state) / ranks,
    }.get(strategy, (weights + gradients + state) / split + 2 * layer + kept)
    return held + load.rest_gib


def table(load: Load) -> str:
    """Renders the strategies of one load on each number of GPUs."""
    header = (
        "GPUs",
        "memory/strategy",
        "GiB a GPU",
        "sent a GPU, GiB",
        "talk, ms",
        "of it shows",
        "efficiency",
        "tokens/s",
    )
    rows = []
    for ranks in SIZES:
        for strategy in ("ddp", "zero1", "zero2", "fsdp2", "hybrid"):
            if strategy == "hybrid" and ranks <= NODE:
                continue
            said = talk(strategy, load, ranks)
            whole, shown = seconds(said, load, ranks)
            efficiency = load.compute_s / (load.compute_s + shown)
            rows.append(
                (
                    str(ranks),
                    "fsdp2, shard_size 8" if strategy == "hybrid" else strategy,
                    f"{memory_gib(strategy, load, ranks):.1f}",
                    f"{(said.inside + said.between + said.behind) / GIB:.2f}",
                    f"{1e3 * whole:,.0f}",
                    f"{1e3 * shown:,.0f}",
                    f"{100 * efficiency:.0f} %",
                    f"{ranks * load.tokens / load.compute_s * efficiency:,.0f}",
                )
            )
    step = f"{1e3 * load.compute_s:,.0f} ms a step of {load.tokens:,.0f} tokens on one GPU"
    return f"### `{load.name}`\n\n{step}.\n\n{markdown(header, rows)}"


def main(docs: Path = ROOT / "docs") -> None:
    """Writes the page's tables."""
    parts = []
    for path in sorted((docs / "results").glob("memory_*.json")):
        entries = [entry for entry in read_json(path) if entry["status"] == "completed" and entry["compiled"]]
        chosen = [entry for entry in entries if any(name in entry["key"] for name in CHOSEN)]
        parts += [table(load_of(entry)) for entry in chosen]
    fill(docs / "scaling.md", {"scaling": "\n".join(parts) or "Not measured.\n"})


CHOSEN = (
    "4b tuner=lora data.packing_length=8192 memory.checkpointing=none",
    "8b tuner=lora data.packing_length=8192 memory.checkpointing=full",
    "2b tuner=full data.packing_length=8192 memory.checkpointing=none",
    "4b tuner=full data.packing_length=8192 memory.checkpointing=full",
)
"""Loads that are shown, by their key in the results."""


if __name__ == "__main__":
    main()
