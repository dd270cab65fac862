"""Makes the table of what several GPUs were measured at, beside what was calculated for them."""

from pathlib import Path
from typing import Any

from scaling import INSIDE, Load, seconds, talk
from tables import card, failure, fill, markdown, read_json

Entry = dict[str, Any]
ONE = "compiled"
"""What a run of one process is called in the results."""
ELSEWHERE = " *"
"""Behind the speed of one GPU on another machine, or of another state of the code."""
HEADER = (
    *("load", "memory/strategy", "GPUs", "tokens/s a GPU", "of one GPU", "efficiency", "calculated"),
    *("collectives, ms a step", "peak GiB", "largest difference of the loss"),
)


def render(bench: dict[str, Any], docs: Path) -> None:
    """Writes the table between its markers.

    Args:
        bench: The content of multi_gpu.yaml.
        docs: The folder with scaling.md and results/.
    """
    results = docs / "results"
    parts = []
    for path in sorted(results.glob("multi_gpu_*.json")):
        entries = read_json(path)
        links = read_json(results / f"links_{card(entries[0]['device']).lower()}.json", [])
        parts += [table(bench, entries, links), *([links_table(links)] if links else [])]
    fill(docs / "scaling.md", {"measured": "\n".join(parts) or "Not yet.\n"})


def links_table(links: list[Entry]) -> str:
    """Renders what GPUs of a card send each other."""
    names = ("all_gather", "reduce_scatter", "all_reduce")
    rows = [
        [str(entry["gpus"]), size, *(f"{rates[name] / 1e9:.1f}" for name in names)]
        for entry in links
        for size, rates in entry["bytes_per_s"].items()
    ]
    return markdown(("GPUs", "tensor, MiB", *(f"{name.replace('_', '-')}, GB/s sent" for name in names)), rows)


def table(bench: dict[str, Any], entries: list[Entry], links: list[Entry]) -> str:
    """Renders the results of one card.

    Args:
        bench: The content of multi_gpu.yaml.
        entries: Of multi_gpu.py.
        links: Of links.py, with the same card.
    """
    inside = {entry["gpus"]: list(entry["bytes_per_s"].values())[-1]["all_gather"] for entry in links}
    found = {entry["key"]: {**entry, "sends": inside.get(entry["gpus"], INSIDE)} for entry in entries}
    loads, ways = list(bench["loads"]), [ONE, *bench["strategies"]]
    entries = sorted(entries, key=lambda entry: (loads.index(entry["load"]), entry["gpus"], ways.index(entry["way"])))
    rows = [row(found[entry["key"]], found) for entry in entries]
    versions = sorted({f"torch {entry['versions'].get('torch')}" for entry in entries})
    return f"### {entries[0]['device']}, {', '.join(versions)}\n\n{markdown(HEADER, rows)}"


def row(entry: Entry, found: dict[str, Entry]) -> list[str]:
    """Returns the cells of one run."""
    single = entry["way"] == ONE
    head = [
        entry["load"],
        f"one process, {entry['way']}" if single else entry["way"],
        f"1 (for {entry['gpus']})" if single else str(entry["gpus"]),
    ]
    if "tokens_per_s" not in entry or entry["status"] != "completed":
        return [*head, failure(entry), *[""] * (len(HEADER) - 4)]
    memory = entry["peak_allocated_gib"]
    shown = "" if memory is None else f"{memory:.1f}"
    if single:
        return [*head, f"{entry['tokens_per_s']:,.0f}", *[""] * 4, shown, ""]
    each = entry["tokens_per_s"] / entry["gpus"]
    talked = entry["communication_ms"]
    speed = [f"{each:,.0f}", *_efficiency(entry, found), "" if talked is None else f"{talked:.1f}", shown]
    return [*head, *speed, _difference(entry, found)]


def _reference(entry: Entry, found: dict[str, Entry]) -> Entry | None:
    """Returns what is known of the one process that an entry is held against: of its machine where it has that."""
    if "one" in entry:
        return entry["one"]
    other = found.get(f"{entry['load']} {ONE} {entry['gpus']}")
    return other if other is not None and "tokens_per_s" in other else None


def _efficiency(entry: Entry, found: dict[str, Entry]) -> list[str]:
    """Returns one GPU's speed, and the efficiency, measured and as `scaling.py` calculates it from one GPU's step.

    Steps have the same rows on one GPU as on all, so that medians of their seconds can be compared.
    """
    one = _reference(entry, found)
    if one is None:
        return ["", "", ""]
    elsewhere = "" if "one" in entry else ELSEWHERE
    speed = f"{one['tokens_per_s']:,.0f}{elsewhere}"
    compute = one["step_time_s"] / entry["gpus"]
    layers = 28 if entry["load"].startswith("2b") else 36
    sizes = (entry["total_parameters"], entry["trainable_parameters"], layers)
    load = Load(entry["load"], *sizes, compute, 0.0, 0.0, 0.0, 0.0, 0.0)
    # However it gathers. Nothing else is calculated: host, or between layers.
    strategy = entry["way"].removesuffix("_copy_engines")
    measured = f"{100 * compute / entry['step_time_s']:.1f} %"
    if "offload" in strategy or strategy == "ulysses":
        return [speed, measured, ""]
    shown = seconds(talk(strategy, load, entry["gpus"]), load, entry["gpus"], entry["sends"])[1]
    return [speed, measured, f"{100 * compute / (compute + shown):.1f} %"]


def _difference(entry: Entry, found: dict[str, Entry]) -> str:
    one = _reference(entry, found)
    if one is None or len(one["losses"]) != len(entry["losses"]):
        # Another number of steps has another schedule.
        return ""
    return f"{max(abs(a - b) for a, b in zip(entry['losses'], one['losses'], strict=True)):.4f}"
