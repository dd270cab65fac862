"""Many comparisons at once: Holm's correction, and letters for groups that cannot be separated."""

from collections.abc import Sequence
from string import ascii_lowercase

import numpy as np

ALPHA = 0.05

MAX_GROUPS = len(ascii_lowercase)
"""Letters there are; where more groups overlap, the cells have no letters."""


def holm(p_values: Sequence[float], tests: int = 0) -> list[float]:
    """Returns p-values that hold for all tests together (Holm 1979, doi:10.2307/4615733): the family-wise error.

    Args:
        p_values: Of each test; one that is NaN stays so, and counts as no test.
        tests: How many tests there are, where the larger p-values of some are not worth finding.
    """
    values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(np.isfinite(values))
    ordered = tested[np.argsort(values[tested], kind="stable")]
    factors = max(tests, len(ordered)) - np.arange(len(ordered))
    adjusted = np.full(len(values), np.nan)
    adjusted[ordered] = np.minimum(1.0, np.maximum.accumulate(values[ordered] * factors))
    return [float(value) for value in adjusted]


def letters(count: int, different: Sequence[tuple[int, int]]) -> list[str]:
    """Returns letters for items sorted from the best: two that share one cannot be told apart, all others can.

    Insert and absorb (Piepho 2004, doi:10.1198/1061860043515): each pair that differs splits every group that has both.

    Args:
        count: Items.
        different: Pairs of them that differ.

    Returns:
        Letters of each, such as `ab`; empty ones where there are more groups than letters.
    """
    groups = [frozenset(range(count))]
    for first, second in different:
        split = []
        for group in groups:
            split += [group - {first}, group - {second}] if {first, second} <= group else [group]
        groups = _absorbed(split)
        if len(groups) > 4 * MAX_GROUPS:
            return [""] * count
    if len(groups) > MAX_GROUPS:
        return [""] * count
    groups = sorted(groups, key=sorted)
    return ["".join(ascii_lowercase[n] for n, group in enumerate(groups) if item in group) for item in range(count)]


def _absorbed(groups: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """Leaves out groups that lie within another."""
    kept: list[frozenset[int]] = []
    for group in sorted(set(groups), key=lambda group: (-len(group), sorted(group))):
        if not any(group <= other for other in kept):
            kept.append(group)
    return kept
