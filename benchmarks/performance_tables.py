"""Makes the tables of docs/performance.md from docs/results/performance_*.json."""

from pathlib import Path
from typing import Any

from tables import failure, fill, markdown, read_json

Entry = dict[str, Any]
HEADER = (
    *("workload", "tokens/s", "min to max", "MFU", "of measured peak", "supervised/s", "samples/s", "peak GiB"),
    *("waits for data", "SM MHz", "start, s", "goal", "ms-swift 4.6"),
)


def render(bench: dict[str, Any], docs: Path) -> None:
    """Writes the tables between their markers.

    Args:
        bench: The content of bench.yaml.
        docs: The folder with performance.md and results/.
    """
    found = sorted((docs / "results").glob("performance_*.json"))
    cards = [path for path in found if path.stem != "performance_cpu"]
    text = "\n".join(gpu(bench["workloads"], read_json(path)) for path in cards)
    cpu_text = cpu(read_json(docs / "results" / "performance_cpu.json", []))
    fill(docs / "performance.md", {"gpu": text or "Not measured.\n", "cpu": cpu_text or "Not measured.\n"})


def gpu(workloads: dict[str, Entry], entries: list[Entry]) -> str:
    """Renders the workloads of a card, those not measured too, with the commands."""
    measured = {entry["key"]: entry for entry in entries}
    rows = [[workload["title"], *cells(measured.get(name), workload)] for name, workload in workloads.items()]
    names = sorted({str(entry["device"]) for entry in entries})
    text = f"### {', '.join(names)}\n\n{markdown(HEADER, rows)}\n"
    for where in sorted({machine(entry) for entry in entries}):
        text += f"{where}\n"
    commands = [f"    {measured[name]['command']}\n" for name in workloads if name in measured]
    return f"{text}\n{''.join(commands)}"


def cells(entry: Entry | None, workload: Entry) -> list[str]:
    """Returns a workload's figures, or why there are none."""
    aims = [f"{workload[key]:,}" if key in workload else "" for key in ("goal", "peer")]
    blank = [""] * (len(HEADER) - 4)
    if entry is None or entry["status"] != "completed":
        return ["not measured" if entry is None else failure(entry), *blank, *aims]
    return [
        f"{entry['tokens_per_s']:,.0f}",
        f"{entry['tokens_per_s_min']:,.0f} to {entry['tokens_per_s_max']:,.0f}",
        percent(entry.get("mfu")),
        percent(entry.get("mfu_of_measured_peak")),
        f"{entry['supervised_tokens_per_s']:,.0f}",
        f"{entry['samples_per_s']:,.1f}",
        "" if entry["peak_allocated_gib"] is None else f"{entry['peak_allocated_gib']:.1f}",
        percent(entry["data_wait_fraction"]),
        _clock(entry),
        f"{entry['startup_time_s']:.1f}",
        *aims,
    ]


def _clock(entry: Entry) -> str:
    """Returns the clock under load, of the highest one."""
    if entry.get("sm_clock_mhz") is None:
        return ""
    return f"{entry['sm_clock_mhz']:,.0f} of {entry['max_sm_clock_mhz']:,.0f} at {entry['power_w']:,.0f} W"


def machine(entry: Entry) -> str:
    """Says on what a figure was measured."""
    peak = entry.get("measured_peak_tflop_per_s")
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items() if version)
    measured = f"; products of 8192^3 at {peak:,.0f} TFLOP/s" if peak else ""
    return f"Commit {entry['git']}, {versions}{measured}."


def cpu(entries: list[Entry]) -> str:
    """Renders the ratios to stock transformers + PEFT."""
    if not entries:
        return ""
    header = ["packed rows", "times as fast", "min to max", "step, ms", "stock, ms", "tokens a step"]
    rows = [
        [
            entry["key"],
            f"{entry['ratio']:.2f}",
            f"{entry['ratio_min']:.2f} to {entry['ratio_max']:.2f}",
            *(f"{1e3 * entry[key]:.0f}" for key in ("step_time_s", "stock_step_time_s")),
            f"{entry['tokens']:,.0f}",
        ]
        for entry in entries
    ]
    where = entries[0]["environment"]
    packages = ", ".join(f"{name} {where['packages'][name]}" for name in ("torch", "transformers", "peft"))
    commit = ((where["git"] or {}).get("commit") or "unknown")[:12]
    return f"{markdown(header, rows)}\nOne thread of {where['device']['name']}; {packages}; commit {commit}.\n"


def percent(share: float | None) -> str:
    """Returns a share in percent, nothing for none."""
    return "" if share is None else f"{100 * share:.1f} %"
