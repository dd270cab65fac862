"""A learning rate chosen for each method: whether the grid reached far enough, and what the choice alone gains.

The best of several noisy means is better than its own truth (the winner's curse). `honest` measures each choice on data
that had no part in it: seeds are left out in turn, and of the validation rows one half chooses and the other measures
(cross-fitting; Cawley & Talbot 2010, JMLR 11, on selection bias in reported performance).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.report.axes import is_numeric, levels
from harness.report.compare import MAX_COMPARED, Comparison, Ranked, separate
from harness.report.statistics import Array
from harness.report.trial import Value, short, spell

TUNED = ("optim.lr", "optim.vit_lr", "optim.aligner_lr")
"""Axes over which a method is taken at its best, unless others are named."""


@dataclass(kw_only=True, slots=True)
class Method:
    """All cells that share everything but the tuned axes."""

    axes: dict[str, Value]
    tried: list[Ranked]
    """Best first."""
    honest: float = math.nan
    """The metric of what was chosen, on seeds and rows that did not choose."""
    letters: str = ""
    """Methods that share one, each at its best, can not be told apart."""
    edges: list[str]
    """Of the tuned axes on which the best value is the last one tried."""

    @property
    def name(self) -> str:
        """The values of its axes."""
        return ", ".join(f"{short(key)}={spell(value)}" for key, value in self.axes.items()) or "all"

    @property
    def chosen(self) -> Ranked:
        """The best of its cells."""
        return self.tried[0]


def methods_of(found: Comparison, tuned: Sequence[str]) -> list[Method]:
    """Groups the leaderboard by method, best first; without tuned axes each cell is a method."""
    groups: dict[str, list[Ranked]] = {}
    for one in found.board:
        key = repr([(axis, value) for axis, value in one.cell.axes.items() if axis not in tuned])
        groups.setdefault(key, []).append(one)
    methods = [_method(tried, tuned, found.lower_is_better) for tried in groups.values()]
    count = len(methods)
    best = methods[:MAX_COMPARED]
    marks = separate([method.chosen for method in best], count * (count - 1) // 2).letters if best else []
    for method, mark in zip(best, marks, strict=True):
        method.letters = mark
    return methods


def _method(tried: list[Ranked], tuned: Sequence[str], lower: bool) -> Method:
    axes = {axis: value for axis, value in tried[0].cell.axes.items() if axis not in tuned}
    return Method(axes=axes, tried=tried, honest=_honest(tried, lower), edges=edges(tried[0], tried, tuned))


def edges(best: Ranked, others: Sequence[Ranked], axes: Sequence[str]) -> list[str]:
    """Says on which numeric axes the best value is the lowest or the highest tried, all else being equal."""
    said = []
    for axis in axes:
        same = [one.cell for one in others if _apart_from(axis, one) == _apart_from(axis, best)]
        values, own = levels(same, axis), best.cell.axes.get(axis)
        if len(values) < 2 or not is_numeric(values) or own not in (values[0], values[-1]):
            continue
        where = "lowest" if own == values[0] else "highest"
        said.append(f"{short(axis)}={spell(own)} is the {where} tried")
    return said


def _apart_from(axis: str, one: Ranked) -> list[tuple[str, Value]]:
    return [(key, value) for key, value in one.cell.axes.items() if key != axis]


def _honest(tried: Sequence[Ranked], lower: bool) -> float:
    common = [seed for seed in tried[0].seeds if all(seed in one.seeds for one in tried)]
    if len(tried) < 2 or len(common) < 2:
        return math.nan
    return honest(np.stack([one.scores_SI[[one.seeds.index(seed) for seed in common]] for one in tried]), lower=lower)


def honest(scores_CSI: Array, *, lower: bool) -> float:
    """Returns what a choice among C cells comes to on data that did not choose.

    Args:
        scores_CSI: Of each cell, seed (2 or more) and item; one item leaves the items whole.
        lower: Whether a lower score is better.
    """
    _, seeds, items = scores_CSI.shape
    half = np.arange(items) % 2 == 0
    folds = [(half, ~half), (~half, half)] if items > 1 else [(half, half)]
    measured = []
    for seed in range(seeds):
        others = np.arange(seeds) != seed
        for chooses, measures in folds:
            means_C = scores_CSI[:, others][:, :, chooses].mean((1, 2))
            chosen = means_C.argmin() if lower else means_C.argmax()
            measured.append(scores_CSI[chosen, seed, measures].mean())
    return float(np.mean(measured))
