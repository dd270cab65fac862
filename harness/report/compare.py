"""Cells compared: means with intervals, letters, how often each is the best, and the noise that all this rests on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.report.multiple import ALPHA, holm, letters
from harness.report.statistics import (
    Array,
    Estimate,
    Spread,
    chance_of_best,
    difference,
    linearised,
    mean,
    moderate,
    smallest_difference,
)
from harness.report.trial import Cell, Trial

MAX_COMPARED = 30
"""Best cells whose pairs are tested one by one; Holm counts the pairs of all cells all the same."""


@dataclass(kw_only=True, slots=True)
class Ranked:
    """A cell on the leaderboard."""

    cell: Cell
    seeds: list[int | None]
    scores_SI: Array
    estimate: Estimate
    letters: str = ""
    """Cells that share one can not be told apart."""
    p: float = math.nan
    """Of its difference to the first, after Holm."""
    gap: Estimate | None = None
    """Its mean minus that of the first."""
    chance: float = math.nan
    """How often it is the best when seeds are drawn anew."""


@dataclass(kw_only=True, slots=True)
class Noise:
    """What differs without a cause that anyone set."""

    seed_sd: float = math.nan
    """Standard deviation over seeds of one config, pooled over cells."""
    repeat_sd: float = math.nan
    """The same of runs of one config and one seed."""
    repeats: int = 0
    """Pairs of such runs."""
    smallest: float = math.nan
    """Difference between two cells that this study finds four times of five, all pairs tested."""


@dataclass(kw_only=True, slots=True)
class Comparison:
    """The leaderboard, best first."""

    metric: str
    lower_is_better: bool
    board: list[Ranked] = field(default_factory=list)
    by_item: bool = False
    """Whether validation rows are part of the intervals."""
    noise: Noise = field(default_factory=Noise)


def compare(cells: Sequence[Cell], metric: str, *, lower_is_better: bool) -> Comparison:
    """Compares the cells that have completed trials with the metric."""
    with_items = _share_items([trial for cell in cells for trial in cell.completed], metric)
    board = [ranked for cell in cells if (ranked := _ranked(cell, metric, with_items)) is not None]
    sign = 1 if lower_is_better else -1
    board.sort(key=lambda one: sign * one.estimate.value)
    found = Comparison(metric=metric, lower_is_better=lower_is_better, board=board, by_item=with_items)
    if not board:
        return found
    _pool(board)
    _chances(board, lower_is_better)
    found.noise = _noise(cells, metric)
    found.noise.smallest = _test(board)
    return found


def scores_of(cell: Cell, metric: str, with_items: bool) -> tuple[list[int | None], Array]:
    """Returns the seeds that have the metric, and their scores (S, I), or (S, 1) without items."""
    trials = [trial for trial in cell.completed if math.isfinite(trial.values.get(metric, math.nan))]
    seeds = [trial.seed for trial in trials]
    if not with_items or not trials:
        return seeds, np.array([[trial.values[metric]] for trial in trials])
    items = [trial.items[metric] for trial in trials]
    return seeds, linearised(np.stack([one.numerator for one in items]), np.stack([one.weight for one in items]))


def contrast(first: Ranked, second: Ranked) -> Estimate:
    """Returns the first's mean minus the second's: seed by seed where they have two seeds or more in common."""
    common = [seed for seed in first.seeds if seed in second.seeds and seed is not None]
    if len(common) >= 2 or (first.seeds == second.seeds and common):
        rows = [[one.seeds.index(seed) for seed in common] for one in (first, second)]
        return difference(first.scores_SI[rows[0]], second.scores_SI[rows[1]], paired=True)
    return difference(first.scores_SI, second.scores_SI, paired=False)


def _share_items(trials: Sequence[Trial], metric: str) -> bool:
    """Whether all trials with the metric kept the same rows."""
    rows = {trial.items[metric].origins if metric in trial.items else () for trial in trials if metric in trial.values}
    return len(rows) == 1 and len(next(iter(rows))) > 1


def _ranked(cell: Cell, metric: str, with_items: bool) -> Ranked | None:
    seeds, scores_SI = scores_of(cell, metric, with_items)
    return Ranked(cell=cell, seeds=seeds, scores_SI=scores_SI, estimate=mean(scores_SI)) if seeds else None


def _pool(board: Sequence[Ranked]) -> None:
    """Lets the intervals of cells share what is known of the noise of seeds."""
    spreads = moderate([one.estimate.spread for one in board], sum(len(one.seeds) - 1 for one in board))
    for one, spread in zip(board, spreads, strict=True):
        one.estimate = Estimate(value=one.estimate.value, spread=spread)


def _chances(board: Sequence[Ranked], lower_is_better: bool) -> None:
    common = [seed for seed in board[0].seeds if all(seed in one.seeds for one in board)]
    if len(common) < 2:
        return
    means_CS = np.array([[one.scores_SI[one.seeds.index(seed)].mean() for seed in common] for one in board])
    for one, chance in zip(board, chance_of_best(means_CS, lower_is_better=lower_is_better), strict=True):
        one.chance = float(chance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """Which of some cells, best first, can be told apart."""

    letters: list[str]
    gaps: list[Estimate]
    """Of each but the first: its mean minus the first's."""
    p_values: list[float]
    """Of these, after Holm."""
    smallest: float
    """Difference that would be found four times of five."""


def separate(ranked: Sequence[Ranked], tests: int = 0) -> Separation:
    """Tests all pairs of cells.

    Args:
        ranked: Best first.
        tests: Pairs that there are in all, where these are some of the cells.
    """
    pairs = [(a, b) for b in range(len(ranked)) for a in range(b)]
    gaps = [contrast(ranked[b], ranked[a]) for a, b in pairs]
    seeds = max(len(one.seeds) for one in ranked)
    spreads = moderate([gap.spread for gap in gaps], (len(ranked) - 1) * (seeds - 1))
    gaps = [Estimate(value=gap.value, spread=spread) for gap, spread in zip(gaps, spreads, strict=True)]
    adjusted = holm([gap.p for gap in gaps], tests)
    apart = [pair for pair, p in zip(pairs, adjusted, strict=True) if p < ALPHA]
    unknown = not any(math.isfinite(p) for p in adjusted)
    firsts = [number for number, (a, _) in enumerate(pairs) if a == 0]
    return Separation(
        letters=[""] * len(ranked) if unknown else letters(len(ranked), apart),
        gaps=[gaps[number] for number in firsts],
        p_values=[adjusted[number] for number in firsts],
        smallest=_smallest(spreads, max(tests, len(pairs))),
    )


def _test(board: Sequence[Ranked]) -> float:
    """Gives the best cells their letters and gaps, and returns the smallest difference that would be found."""
    top = board[:MAX_COMPARED]
    found = separate(top, len(board) * (len(board) - 1) // 2)
    for one, mark in zip(top, found.letters, strict=True):
        one.letters = mark
    for one, gap, p in zip(top[1:], found.gaps, found.p_values, strict=True):
        one.gap, one.p = gap, p
    return found.smallest


def _smallest(spreads: Sequence[Spread], tests: int) -> float:
    known = sorted(
        (spread for spread in spreads if spread.variance > 0 and spread.seed_df >= 1), key=lambda one: one.variance
    )
    if not known:
        return math.nan
    middle = known[len(known) // 2]
    # Of two seeds whose mean has this error: seeds and rows are in the spread already.
    return smallest_difference(2, seed_sd=math.sqrt(2 * middle.variance), comparisons=tests, df=middle.df)


def _noise(cells: Sequence[Cell], metric: str) -> Noise:
    squares = freedom = 0.0
    repeats: list[float] = []
    for cell in cells:
        scores = np.array([value for value in cell.scores(metric).values() if math.isfinite(value)])
        if len(scores) > 1:
            squares, freedom = squares + float(scores.var()) * len(scores), freedom + len(scores) - 1
        repeats += _repeats(cell, metric)
    return Noise(
        seed_sd=math.sqrt(squares / freedom) if freedom else math.nan,
        repeat_sd=math.sqrt(sum(gap**2 / 2 for gap in repeats) / len(repeats)) if repeats else math.nan,
        repeats=len(repeats),
    )


def _repeats(cell: Cell, metric: str) -> list[float]:
    """Returns the differences between runs of one seed."""
    first: dict[int, float] = {}
    gaps = []
    for trial in cell.trials:
        if not trial.completed or trial.seed is None or metric not in trial.values:
            continue
        if trial.seed in first:
            gaps.append(trial.values[metric] - first[trial.seed])
        first.setdefault(trial.seed, trial.values[metric])
    return gaps
