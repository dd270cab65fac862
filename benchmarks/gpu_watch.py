"""Watches clock and power of a GPU while something runs: a card under load lowers its clock, and figures with it."""

import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_QUERY = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,clocks.max.sm", "--format=csv,noheader,nounits", "-i", "0"]
_EVERY_MS = 250
_BUSY = 0.8
"""Share of the highest power seen from which on a sample counts as under load."""


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """Writes a line of samples to a file four times a second; nothing where there is no nvidia-smi."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            process = subprocess.Popen([*_QUERY, "-lms", str(_EVERY_MS)], stdout=file, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def under_load(lines: Sequence[str]) -> dict[str, float]:
    """Returns medians of clock and power over the samples under load, and the highest clock; nothing without samples.

    Args:
        lines: Of `watched`'s file.
    """
    samples = [values for line in lines if (values := _numbers(line))]
    if not samples:
        return {}
    most = max(power for _, power, _ in samples)
    busy = [values for values in samples if values[1] >= _BUSY * most]
    return {
        "sm_clock_mhz": statistics.median(clock for clock, _, _ in busy),
        "power_w": statistics.median(power for _, power, _ in busy),
        "max_sm_clock_mhz": samples[0][2],
    }


def _numbers(line: str) -> tuple[float, float, float] | None:
    try:
        clock, power, most = (float(part) for part in line.split(","))
    except ValueError:
        return None
    return clock, power, most
