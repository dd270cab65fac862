"""How sure a mean over few seeds and many validation items is, alone and against another.

Seeds and items are crossed: each run of a cell is validated on the same rows, and both are samples of what could have
been. The variance of the mean of y (S seeds, I items) has a part of the seeds, one of the items and one of both:

    V = V_seed + (V_item - V_rest where V_item / V_rest is in the upper quarter of F, else 0),   V = mean square / (S I)
    df = V^2 / (V_seed^2 / (S - 1) + V_item^2 / (I - 1) + V_rest^2 / ((S - 1) (I - 1)))

which is the two-way random-effects analysis of variance with Satterthwaite's degrees of freedom (Satterthwaite 1946,
doi:10.2307/3002019); the preliminary test at 25 % is Paull's (1950, Ann. Math. Stat. 21): the floor at 0 alone
makes noise of a part that is not there. Intervals are mean +- t_df sqrt(V). A bootstrap
over both ways (Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111) estimates the same variance, but its percentiles
know nothing of df: with three seeds its 95 % intervals cover under 85 % (`tests/report/test_statistics.py` measures
both). It is used for what has no formula, how often a cell is the best of all (`chance_of_best`), with its seed part
rescaled (Rao & Wu 1988, doi:10.1080/01621459.1988.10478591).

Differences are taken seed by seed and item by item where both cells have them. With few seeds a cell's own variance is
itself hardly known, so the seed parts of one report borrow from each other (Smyth 2004, doi:10.2202/1544-6115.1027).
A ratio, as loss per token, enters by its influence: y_i = R + (numerator_i - R weight_i) / mean weight.

Shapes: S seeds, I items, C cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE, POWER = 0.95, 0.8

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The parts of the variance of a mean, or of a difference of two."""

    seed: float
    """Of the seeds, what they share with items included; NaN with one seed."""
    seed_df: float
    item: float = 0.0
    """Of the items beyond that; 0 where results of items are not kept."""
    item_df: float = math.inf

    @property
    def variance(self) -> float:
        """Of the mean. With one seed, of the items alone."""
        return (0.0 if math.isnan(self.seed) else self.seed) + self.item

    @property
    def df(self) -> float:
        """Satterthwaite's degrees of freedom."""
        seed = 0.0 if math.isnan(self.seed) else self.seed
        below = seed**2 / self.seed_df if seed else 0.0
        below += self.item**2 / self.item_df
        return self.variance**2 / below if below else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean or a difference, with its uncertainty."""

    value: float
    spread: Spread

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval; NaN where nothing is known of the noise."""
        variance = self.spread.variance
        return float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.spread.df)) * math.sqrt(variance) if variance else math.nan

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half

    @property
    def p(self) -> float:
        """Two-sided p of its being zero; NaN where nothing is known of the noise."""
        variance = self.spread.variance
        if not variance:
            return math.nan
        return float(2 * stats.t.sf(abs(self.value) / math.sqrt(variance), self.spread.df))


def mean(scores_SI: Array) -> Estimate:
    """Estimates the mean of a cell.

    Args:
        scores_SI: A score for each seed and item, or (S, 1) where items are not kept.
    """
    return Estimate(value=float(scores_SI.mean()), spread=_spread(*_parts(scores_SI), scores_SI.shape))


def difference(first_SI: Array, second_SI: Array, *, paired: bool) -> Estimate:
    """Estimates the mean of the first minus that of the second, over the same items.

    Args:
        first_SI: Scores of one cell; both have items, the same ones in the same order, or neither has.
        second_SI: Scores of the other; with as many seeds, if they are paired.
        paired: Row by row the same seed: data order and the start of training are common to both.
    """
    value = float(first_SI.mean() - second_SI.mean())
    if paired:
        return Estimate(value=value, spread=_spread(*_parts(first_SI - second_SI), first_SI.shape))
    (seed_a, df_a, _, rest_a), (seed_b, df_b, _, rest_b) = _parts(first_SI), _parts(second_SI)
    seed = seed_a + seed_b
    df = seed**2 / (seed_a**2 / df_a + seed_b**2 / df_b) if seed > 0 and df_a and df_b else min(df_a, df_b)
    item = _variance_of_mean(first_SI.mean(0) - second_SI.mean(0))
    sizes = min(len(first_SI), len(second_SI)), first_SI.shape[1]
    return Estimate(value=value, spread=_spread(seed, df, item, rest_a + rest_b, sizes))


def linearised(numerator_SI: Array, weight_SI: Array) -> Array:
    """Turns sums and weights into scores whose mean is each seed's ratio, and whose spread is the ratio's."""
    ratio_S1 = numerator_SI.sum(1, keepdims=True) / weight_SI.sum(1, keepdims=True)
    return ratio_S1 + (numerator_SI - ratio_S1 * weight_SI) / weight_SI.mean(1, keepdims=True)


def _parts(scores_SI: Array) -> tuple[float, float, float, float]:
    """Returns the variance of the mean by seeds, its degrees of freedom, and those by items and by what is left."""
    seeds, items = scores_SI.shape
    by_seed, by_item = _variance_of_mean(scores_SI.mean(1)), _variance_of_mean(scores_SI.mean(0))
    if seeds < 2 or items < 2:
        return by_seed, seeds - 1, by_item, 0.0
    left_SI = scores_SI - scores_SI.mean(0) - scores_SI.mean(1, keepdims=True) + scores_SI.mean()
    return by_seed, seeds - 1, by_item, float((left_SI**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items))


def _spread(seed: float, seed_df: float, item: float, rest: float, shape: tuple[int, ...]) -> Spread:
    seeds, items = shape
    beyond = 0.0 if math.isnan(item) else item - rest
    if beyond <= 0 or (seeds > 1 and item < rest * _upper_quartile(items - 1, (seeds - 1) * (items - 1))):
        return Spread(seed=seed, seed_df=seed_df)
    # A difference of two that are nearly equal is known far worse than each of them.
    below = (item**2 + (rest**2 / (seeds - 1) if seeds > 1 else 0.0)) / (items - 1)
    return Spread(seed=seed, seed_df=seed_df, item=beyond, item_df=beyond**2 / below)


@lru_cache
def _upper_quartile(above: int, below: int) -> float:
    """Returns the ratio of two equal variances that is exceeded once in four times."""
    return float(stats.f.ppf(0.75, above, below))


def _variance_of_mean(values: Array) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else math.nan


def moderate(spreads: Sequence[Spread], most_df: float) -> list[Spread]:
    """Lets the seed parts of several estimates borrow from each other.

    Each variance is taken as a scaled inverse chi-square draw around a common one, whose weight in degrees of freedom
    is found from how much the variances differ beyond what their own few allow (Smyth 2004, eq. 4 to 6). Equal noise
    in all cells pools it; noise that differs leaves each its own.

    Args:
        spreads: Of estimates of one kind, with equally many seeds each or not.
        most_df: Degrees of freedom that the data have in all; none gets more.
    """
    usable = [spread for spread in spreads if spread.seed > 0]
    if len(usable) < 3:
        return list(spreads)
    variance, df = np.array([s.seed for s in usable]), np.array([s.seed_df for s in usable])
    log_C = np.log(variance) - special.digamma(df / 2) + np.log(df / 2)
    excess = float(log_C.var(ddof=1) - special.polygamma(1, df / 2).mean())
    if excess > 0:
        prior_df = 2 * _inverse_trigamma(excess)
        prior = math.exp(log_C.mean() + special.digamma(prior_df / 2) - math.log(prior_df / 2))
    else:
        prior_df, prior = math.inf, float((variance * df).sum() / df.sum())
    return [_moderated(spread, prior, prior_df, most_df) for spread in spreads]


def _moderated(spread: Spread, prior: float, prior_df: float, most_df: float) -> Spread:
    if math.isnan(spread.seed):
        return spread
    whole = math.isinf(prior_df)
    seed = prior if whole else (prior_df * prior + spread.seed_df * spread.seed) / (prior_df + spread.seed_df)
    df = max(spread.seed_df, min(most_df, prior_df + spread.seed_df))
    return Spread(seed=seed, seed_df=df, item=spread.item, item_df=spread.item_df)


def _inverse_trigamma(value: float) -> float:
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - value, 1e-6, 1e8))


def chance_of_best(means_CS: Array, *, lower_is_better: bool, draws: int = 2000, seed: int = 0) -> Array:
    """Returns (C,) how often each cell has the best mean when seeds are drawn anew, the same ones for all cells.

    S - 1 of the S seeds are drawn, with replacement: the variance of their mean is then that of the mean of S
    (Rao & Wu 1988); drawing S would show it too small by (S - 1) / S.
    """
    cells, seeds = means_CS.shape
    size = max(1, seeds - 1)
    picked_DS = np.random.default_rng(seed).integers(seeds, size=(draws, size))
    counts_DS = np.stack([(picked_DS == column).sum(1) for column in range(seeds)], axis=1) / size
    drawn_CD = means_CS @ counts_DS.T
    best_D = drawn_CD.argmin(0) if lower_is_better else drawn_CD.argmax(0)
    return np.bincount(best_D, minlength=cells) / draws


def smallest_difference(
    seeds: int, *, seed_sd: float, items: int = 0, item_sd: float = 0.0, comparisons: int = 1, df: float | None = None
) -> float:
    """Returns the difference of two cells that a study finds with 80 % probability at 5 % (two-sided, Bonferroni).

    Args:
        seeds: Of each cell, at least 2 (with one, seeds tell no noise, and the result is infinite).
        seed_sd: Standard deviation over seeds of the difference of two runs of one seed; of runs whose noise is
            independent, sqrt(2) times that of one.
        items: Validation rows; 0 leaves their part out.
        item_sd: Standard deviation over rows of the difference of two cells; for exact match, the root of the share of
            rows on which two runs disagree, at most.
        comparisons: Pairs that are tested together.
        df: Degrees of freedom of `seed_sd`; seeds - 1 without, more where cells are pooled (`moderate`).
    """
    freedom = float(seeds - 1) if df is None else df
    if freedom < 1:
        return math.inf
    spread = Spread(seed=seed_sd**2 / seeds, seed_df=freedom, item=item_sd**2 / items if items else 0.0)
    error, df = math.sqrt(spread.variance), min(spread.df, 1e6)
    if error == 0:
        return 0.0
    critical = stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, df)
    shift = optimize.brentq(lambda x: stats.nct.sf(critical, df, x) - POWER, 0, critical + 40)
    return float(shift) * error
