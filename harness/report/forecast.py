"""What a sweep will be able to tell, said before it starts."""

import math
from pathlib import Path

from harness.report.analysis import analyse
from harness.report.statistics import smallest_difference


def forecast(cells: int, seeds: int, pilot: Path | None = None) -> str:
    """Returns one line: the smallest difference between two cells that the sweep finds four times of five.

    Args:
        cells: Settings that are compared, seeds apart.
        seeds: Runs of each.
        pilot: Folder of a finished sweep whose noise this one will have; without it the difference is told in standard
            deviations over seeds, and validation rows take no part.

    Raises:
        UserError: As for `analyse`, of the pilot.
    """
    pairs = max(1, cells * (cells - 1) // 2)
    if seeds < 2:
        remedy = "what differs may differ in these runs alone; give two or more"
        return f"{cells} cells of one seed: how much seeds change is not measured, so {remedy}"
    freedom = float(max(1, cells - 1) * (seeds - 1))
    units = smallest_difference(seeds, seed_sd=math.sqrt(2), comparisons=pairs, df=freedom)
    line = f"{cells} cells of {seeds} seeds: differences from {units:.2g} standard deviations over seeds on are found"
    if pilot is None:
        return f"{line} (four times of five, all {pairs} pairs tested)"
    found = analyse([pilot]).comparison
    if not math.isfinite(found.noise.seed_sd):
        return (
            f"{line} (four times of five, all {pairs} pairs tested); {pilot} has no cell of two seeds to tell more by"
        )
    size = units * found.noise.seed_sd
    return (
        f"{line}, {size:.2g} of {found.metric} by the noise of {pilot} (four times of five, all {pairs} pairs tested)"
    )
