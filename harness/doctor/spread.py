"""How numbers are spread: six figures, and a histogram that fits into a console."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.logging.table import Cell
from harness.logging.table import show as show_table

Bins = list[tuple[int, int, int]]
"""(from, below, how many) of each bin."""

_BINS = 10
_BAR = 30
_FIGURES = ("min", "median", "mean", "p95", "max")


def measure(values_N: np.ndarray) -> dict[str, Any] | None:
    """Returns min, median, mean, p95, max and total; None of nothing."""
    if not len(values_N):
        return None
    return {
        "min": int(values_N.min()),
        "median": float(np.median(values_N)),
        "mean": float(values_N.mean()),
        "p95": float(np.percentile(values_N, 95)),
        "max": int(values_N.max()),
        "total": int(values_N.sum(dtype=np.int64)),
    }


def show(title: str, each: str, spreads: dict[str, dict[str, Any] | None], *, total: bool = True) -> None:
    """Prints a row for each quantity that there is any of.

    Args:
        title: Above the table.
        each: What the figures are of: `per sample`.
        spreads: Results of `measure` by name.
        total: Print the sums too.
    """
    figures = (*_FIGURES, "total") if total else _FIGURES
    rows: list[list[Cell]] = [
        [name, *(_short(found[key]) for key in figures)] for name, found in spreads.items() if found is not None
    ]
    if rows:
        show_table(title, (each, *figures), rows)
        print()


def histograms(values: Mapping[str, np.ndarray]) -> dict[str, Bins]:
    """Returns about ten bins for each split, with the same round bounds, so that splits compare.

    What lies above the 99th percentile shares the last bin.
    """
    kept = {name: values_N for name, values_N in values.items() if len(values_N)}
    if not kept:
        return {}
    together = np.concatenate(list(kept.values()))
    low, high, highest = int(together.min()), int(np.percentile(together, 99)), int(together.max())
    step = _round_up((high - low + 1) / _BINS)
    bounds = list(range(low // step * step, high + step + 1, step))
    if highest >= bounds[-1]:
        bounds.append(highest + 1)
    return {
        name: list(zip(bounds[:-1], bounds[1:], np.histogram(values_N, bounds)[0].tolist(), strict=True))
        for name, values_N in kept.items()
    }


def bars(title: str, found: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """Returns histograms of the same bins as text, a line a bin and a column a split."""
    bins = next(iter(found.values()))
    labels = [f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}" for low, high, _ in bins]
    columns = [_column(name, [count for *_, count in split]) for name, split in found.items()]
    width = max(map(len, labels))
    lines = [f"{' ' * width}  {'  '.join(column[0] for column in columns)}"]
    lines += [
        f"{label:>{width}}  {'  '.join(column[number] for column in columns)}"
        for number, label in enumerate(labels, start=1)
    ]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def _column(name: str, counts: list[int]) -> list[str]:
    width = len(f"{max(counts):,}")
    filled = ["█" * math.ceil(_BAR * count / max(*counts, 1)) for count in counts]
    return [f"{name:<{_BAR + width + 1}}"] + [
        f"{count:>{width},} {bar:<{_BAR}}" for count, bar in zip(counts, filled, strict=True)
    ]


def _round_up(step: float) -> int:
    """Returns the least of 1, 2, 5, 10, 20, ... that is not below a step."""
    power = 10 ** math.floor(math.log10(max(step, 1)))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step)


def _short(value: float) -> float:
    """Leaves out decimals that say nothing."""
    return round(value) if value >= 100 or float(value).is_integer() else value
