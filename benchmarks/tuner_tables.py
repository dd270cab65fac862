"""Makes the tables of docs/tuners.md: figures from docs/results/, papers and formulas from tuner_table.yaml."""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tables import card, failure, fill, markdown, read_json

KEPT = (
    *("key", "table", "method", "phase", "lr", "seed", "overrides", "status", "error", "val", "trainable_parameters"),
    *("tokens_per_s", "wall_time_s", "peak_allocated_gib", "peak_rss_gib", "cpu_time_s", "device"),
    "start_s",
)
TABLES = ("digits", "gpu", "optimizers")
Entry = dict[str, Any]


def render(results: Sequence[Path], table: dict[str, Any], docs: Path) -> None:
    """Takes results files into docs/results/, then writes every table between its markers in docs/tuners.md.

    Args:
        results: Files of benchmarks/tuner_table.py; of a run that is there twice the later line holds.
        table: The content of tuner_table.yaml.
        docs: The folder with tuners.md.
    """
    store(results, docs / "results")
    entries = {name: load(docs / "results" / f"tuners_{name}.json") for name in TABLES}
    parts = {
        "methods": methods(table["methods"], entries["gpu"], "method"),
        "variants": methods(table["methods"], entries["gpu"], "variant") + starts(table["methods"], entries["gpu"]),
        "optimizers": optimizers(table["optimizers"], [*adamw(entries["gpu"]), *entries["optimizers"]]),
        "digits": digits(table, entries["digits"]),
    }
    fill(docs / "tuners.md", parts)


def store(results: Sequence[Path], folder: Path) -> None:
    """Merges results files into one JSON file a table."""
    folder.mkdir(exist_ok=True)
    lines = [json.loads(line) for path in results for line in path.read_text(encoding="utf-8").splitlines()]
    for name in TABLES:
        path = folder / f"tuners_{name}.json"
        # On a GPU a method has one row, the latest; on digits one for each rate and seed.
        identity = "key" if name == "digits" else "method"
        found = [*load(path), *(line for line in lines if line["table"] == name)]
        merged = {entry[identity]: entry for entry in found}
        kept = [{key: entry.get(key) for key in KEPT} for _, entry in sorted(merged.items())]
        if kept:
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> list[Entry]:
    """Returns the entries of a file, none where there is no file."""
    return list(read_json(path, []))


def methods(table: dict[str, Any], measured: list[Entry], group: str) -> str:
    """Renders one row a method, with its speed and memory on the 4B shape where they were measured."""
    by_method = {entry["method"]: entry for entry in measured}
    header = ["tuner", "overrides", "paper", "formula", "trained on 4B", "tokens/s", "peak GiB", "GPU", "when to use"]
    rows = []
    for name, method in table.items():
        if method.get("group", "method") == group:
            overrides = " ".join([*method["choice"], *method.get("gpu", [])])
            head = [method.get("label", name), f"`{overrides}`", paper(method["paper"]), f"`{method['formula']}`"]
            rows.append([*head, *speed(by_method.get(name)), method["when"]])
    return markdown(header, rows) + machines(measured)


def starts(table: dict[str, Any], measured: list[Entry]) -> str:
    """Says how long methods take before their first step, where it is more than a few seconds."""
    slow = [(table[entry["method"]].get("label", entry["method"]), entry.get("start_s") or 0) for entry in measured]
    named = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slow if seconds > 5)
    return f"\nBuilt on 4B, with what is made from weights or data: {named}; others within 5 s.\n" if named else ""


def adamw(measured: list[Entry]) -> list[Entry]:
    """Returns the row of AdamW, which is what full training takes by default."""
    return [entry | {"method": "adamw"} for entry in measured if entry["method"] == "full"]


def optimizers(table: dict[str, list[str]], measured: list[Entry]) -> str:
    """Renders one row an optimiser of full training on the 4B shape."""
    by_method = {entry["method"]: entry for entry in measured}
    rows = [[f"`{' '.join(choice)}`", *speed(by_method.get(name))] for name, choice in table.items()]
    return markdown(["optimiser", "trained on 4B", "tokens/s", "peak GiB", "GPU"], rows) + machines(measured)


def speed(entry: Entry | None) -> list[str]:
    """Returns trained parameters, tokens/s, peak memory and the card, or why there are none."""
    if entry is None:
        return ["not measured", "", "", ""]
    if entry["status"] != "completed":
        return [failure(entry), "", "", ""]
    memory = entry["peak_allocated_gib"]
    shown = "" if memory is None else f"{memory:.1f}"
    return [f"{entry['trainable_parameters']:,}", f"{entry['tokens_per_s']:,.0f}", shown, card(entry["device"])]


def digits(table: dict[str, Any], entries: list[Entry]) -> str:
    """Renders one row a method, best mean accuracy first, and says which the seeds do not tell from the best."""
    runs: dict[str, list[Entry]] = {}
    chosen = {name: best_rate([entry for entry in entries if entry["method"] == name]) for name in table["methods"]}
    for entry in entries:
        # A wider grid may choose another rate than the one that runs of before were reported with.
        if entry["phase"] == "report" and entry["status"] == "completed" and entry["lr"] == chosen[entry["method"]]:
            runs.setdefault(entry["method"], []).append(entry)
    scores = {name: [run["val"]["val/exact_match"] for run in found] for name, found in runs.items()}
    ranked = sorted(scores, key=lambda name: -statistics.mean(scores[name]))
    header = ["tuner", "accuracy, mean", "min to max", "seeds", "learning rate", "trained", "CPU s", "RSS GiB"]
    rows = [row(name, table, runs[name], scores[name]) for name in ranked]
    missing = [method.get("label", name) for name, method in table["methods"].items() if name not in scores]
    text = markdown(header, rows)
    if ranked:
        best = min(scores[ranked[0]])
        equal = [label(table, name) for name in ranked[1:] if max(scores[name]) >= best]
        text += (
            f"\nWhat the seeds do not tell from the first row, their ranges overlap: {', '.join(equal) or 'none'}.\n"
        )
    if missing:
        text += f"\nWithout a completed run: {', '.join(missing)}.\n"
    return text + machines(entries)


def best_rate(entries: Iterable[Entry]) -> float | None:
    """Returns the rate of the best held-out accuracy, of equal ones that of the lower loss; None if no run was one."""
    done = [entry for entry in entries if entry["phase"] == "choose" and entry["status"] == "completed"]
    scored = [(entry["val"]["val/exact_match"], -entry["val"]["val/loss"], entry["lr"]) for entry in done]
    return max(scored)[2] if scored else None


def row(name: str, table: dict[str, Any], runs: list[Entry], scores: list[float]) -> list[str]:
    """Returns a method's cells; * marks a learning rate at the edge of the grid, beyond which a better one may lie."""
    grid = [float(lr) for lr in table["methods"][name].get("lrs", table["lrs"])]
    lr = runs[0]["lr"]
    edge = "*" if lr in (min(grid), max(grid)) else ""
    return [
        label(table, name),
        f"{statistics.mean(scores):.4f}",
        f"{min(scores):.4f} to {max(scores):.4f}",
        str(len(scores)),
        f"{lr:g}{edge}",
        f"{runs[0]['trainable_parameters']:,}",
        *(
            f"{statistics.mean(run[key] for run in runs):,.{places}f}"
            for key, places in (("cpu_time_s", 0), ("peak_rss_gib", 2))
        ),
    ]


def label(table: dict[str, Any], name: str) -> str:
    """Returns what the tables call a method."""
    return str(table["methods"][name].get("label", name))


def paper(identifier: str) -> str:
    """Returns a link to arXiv, or the text as it is."""
    return (
        f"[{identifier}](https://arxiv.org/abs/{identifier})"
        if re.fullmatch(r"\d{4}\.\d{5}", identifier)
        else identifier
    )


def machines(entries: Iterable[Entry]) -> str:
    """Says on what the figures were measured."""
    names = sorted({str(entry["device"]) for entry in entries if entry["status"] == "completed"})
    return f"\nMeasured on {', '.join(names)}.\n" if names else ""
