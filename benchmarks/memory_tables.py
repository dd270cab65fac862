"""Makes the table of docs/memory.md from docs/results/memory_*.json."""

import json
from pathlib import Path
from typing import Any

from tables import card, failure, fill, markdown, read_json

Entry = dict[str, Any]
SPEEDS = ("tokens_per_s", "step_ms", "mfu")
"""What a GPU that is shared with other work does not tell."""
HEADER = ("configuration", "predicted, GiB", "measured", "error", "reserved", "tokens/s", "step, ms", "MFU")


def render(lines: Path, docs: Path) -> None:
    """Puts new lines, if there are some, into the results of their cards, and writes the table between its markers.

    Args:
        lines: What `memory_table.py run` wrote.
        docs: The folder with memory.md and results/.
    """
    for line in lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else ():
        keep(json.loads(line), docs / "results")
    found = sorted((docs / "results").glob("memory_*.json"))
    text = "\n".join(table(read_json(path)) for path in found)
    fill(docs / "memory.md", {"predicted": text or "Not measured.\n"})


def keep(entry: Entry, folder: Path) -> None:
    """Puts an entry into the results of its card; speeds that it lacks stay those of the one before."""
    if entry["peak_allocated_gib"] is None:
        return
    path = folder / f"memory_{card(entry['device']).lower()}.json"
    entries = {item["key"]: item for item in read_json(path, [])}
    before = entries.get(entry["key"], {})
    speeds = {key: before.get(key) for key in SPEEDS if entry.get(key) is None}
    entries[entry["key"]] = entry | speeds
    path.write_text(json.dumps(list(entries.values()), indent=1) + "\n", encoding="utf-8")


def table(entries: list[Entry]) -> str:
    """Renders the configurations of one card and how far off the predictions were."""
    rows = [[f"`{entry['key']}`", *cells(entry)] for entry in entries]
    errors = [abs(error(entry)) for entry in entries if entry["status"] == "completed"]
    versions = ", ".join(f"{name} {version}" for name, version in entries[0]["versions"].items())
    text = f"{entries[0]['device']}; {versions}.\n\n{markdown(HEADER, rows)}"
    if errors:
        within = sum(value <= 0.08 for value in errors)
        text += f"\n{within} of {len(errors)} within 8 %; the largest error is {100 * max(errors):.1f} %.\n"
    return text


def error(entry: Entry) -> float:
    """Returns predicted / measured - 1."""
    return float(entry["predicted_gib"] / entry["peak_allocated_gib"] - 1)


def cells(entry: Entry) -> list[str]:
    """Returns a configuration's figures, or why there are none."""
    if entry["status"] != "completed":
        return ["", failure(entry), *[""] * (len(HEADER) - 3)]
    speed = {"tokens_per_s": "{:,.0f}", "step_ms": "{:,.0f}", "mfu": "{:.1%}"}
    return [
        f"{entry['predicted_gib']:.1f}",
        f"{entry['peak_allocated_gib']:.1f}",
        f"{100 * error(entry):+.1f} %",
        f"{entry['peak_reserved_gib']:.1f}",
        *("" if entry[key] is None else form.format(entry[key]).replace("%", " %") for key, form in speed.items()),
    ]
