"""Makes the table of what several GPUs were measured at, beside what was calculated for them."""

from pathlib import Path
from typing import Any

from scaling import Load, seconds, talk
from tables import failure, fill, markdown, read_json

Entry = dict[str, Any]
HEADER = (
    *("load", "memory/strategy", "GPUs", "tokens/s a GPU", "efficiency", "calculated", "collectives, ms a step"),
    *("peak GiB", "largest difference of the loss"),
)


def render(bench: dict[str, Any], docs: Path) -> None:
    """Writes the table between its markers.

    Args:
        bench: The content of multi_gpu.yaml.
        docs: The folder with scaling.md and results/.
    """
    paths = sorted((docs / "results").glob("multi_gpu_*.json"))
    fill(docs / "scaling.md", {"measured": "\n".join(table(bench, read_json(path)) for path in paths) or "Not yet.\n"})


def table(bench: dict[str, Any], entries: list[Entry]) -> str:
    """Renders the results of one card."""
    found = {entry["key"]: entry for entry in entries}
    loads, ways = list(bench["loads"]), [*bench["one_gpu"], *bench["strategies"]]
    entries = sorted(entries, key=lambda entry: (loads.index(entry["load"]), entry["gpus"], ways.index(entry["way"])))
    rows = [row(bench, entry, found) for entry in entries]
    versions = sorted({f"torch {entry['versions'].get('torch')}" for entry in entries})
    return f"### {entries[0]['device']}, {', '.join(versions)}\n\n{markdown(HEADER, rows)}"


def row(bench: dict[str, Any], entry: Entry, found: dict[str, Entry]) -> list[str]:
    """Returns the cells of one run."""
    single = entry["way"] in bench["one_gpu"]
    head = [
        entry["load"],
        f"one process, {entry['way']}" if single else entry["way"],
        str(1 if single else entry["gpus"]),
    ]
    if "tokens_per_s" not in entry or entry["status"] != "completed":
        return [*head, failure(entry), *[""] * (len(HEADER) - 4)]
    memory = entry["peak_allocated_gib"]
    shown = "" if memory is None else f"{memory:.1f}"
    if single:
        return [*head, f"{entry['tokens_per_s']:,.0f}", "", "", "", shown, ""]
    each = entry["tokens_per_s"] / entry["gpus"]
    speed = [f"{each:,.0f}", *_efficiency(bench, entry, found), f"{entry['communication_ms']:.1f}", shown]
    return [*head, *speed, _difference(bench, entry, found)]


def _reference(bench: dict[str, Any], entry: Entry, found: dict[str, Entry]) -> Entry | None:
    against = bench["strategies"][entry["way"]]["against"]
    other = found.get(f"{entry['load']} {against} {entry['gpus']}")
    return other if other is not None and "tokens_per_s" in other else None


def _efficiency(bench: dict[str, Any], entry: Entry, found: dict[str, Entry]) -> list[str]:
    """Returns the measured efficiency and the one that `scaling.py` calculates from the single GPU's step.

    Steps have the same rows on one GPU as on all, so that medians of their seconds can be compared.
    """
    one = _reference(bench, entry, found)
    if one is None:
        return ["", ""]
    compute = one["step_time_s"] / one["gpus"]
    layers = 28 if entry["load"].startswith("2b") else 36
    sizes = (one["total_parameters"], one["trainable_parameters"], layers)
    load = Load(entry["load"], *sizes, compute, 0.0, 0.0, 0.0, 0.0, 0.0)
    # ZeRO-3 sends what FSDP2 does. What goes to the host and back, or between layers, is not calculated.
    strategy = {"zero3": "fsdp2"}.get(entry["way"], entry["way"])
    measured = f"{100 * compute / entry['step_time_s']:.1f} %"
    if "offload" in strategy or strategy == "ulysses":
        return [measured, ""]
    shown = seconds(talk(strategy, load, entry["gpus"]), load, entry["gpus"])[1]
    return [measured, f"{100 * compute / (compute + shown):.1f} %"]


def _difference(bench: dict[str, Any], entry: Entry, found: dict[str, Entry]) -> str:
    one = _reference(bench, entry, found)
    if one is None:
        return ""
    return f"{max(abs(a - b) for a, b in zip(entry['losses'], one['losses'], strict=True)):.4f}"
