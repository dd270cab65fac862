"""Synthetic studies with known truth: what is called 95 % is it, and equal methods are rarely called different."""

import math

import numpy as np
import pytest

from harness.report.multiple import holm
from harness.report.statistics import (
    Estimate,
    Spread,
    chance_of_best,
    difference,
    linearised,
    mean,
    moderate,
    smallest_difference,
)

REPETITIONS = 1000
NOISE = [(1.0, 0.1, 0.3), (0.02, 1.0, 0.5), (0.05, 1.0, 1.0), (0.0, 0.3, 1.0)]
"""Standard deviations of seeds, items and both: seeds rule; items rule; both; seeds alike."""


def draw(rng, seeds, items, noise, cells=1):
    """(cells, seeds, items) scores around 0: cells share their items, and nothing else."""
    seed_sd, item_sd, rest_sd = noise
    scores = seed_sd * rng.normal(size=(cells, seeds, 1)) + item_sd * rng.normal(size=(1, 1, items))
    return scores + rest_sd * rng.normal(size=(cells, seeds, items))


def percentile(scores, rng, draws=200):
    """The plain bootstrap over seeds and items, for comparison."""
    seeds, items = scores.shape
    weights = (
        rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws),
        rng.multinomial(items, np.full(items, 1 / items), draws),
    )
    return np.quantile(((weights[0] @ scores) * weights[1]).sum(1) / (seeds * items), [0.025, 0.975])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", NOISE[:3], ids=["seeds", "items", "both"])
def test_95_percent_intervals_cover(seeds, noise):
    rng = np.random.default_rng(1)
    found = [mean(draw(rng, seeds, 100, noise)[0]) for _ in range(REPETITIONS)]
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("noise", NOISE[:3], ids=["seeds", "items", "both"])
def test_intervals_of_differences_cover(noise, paired):
    rng = np.random.default_rng(2)
    found = []
    for _ in range(REPETITIONS):
        first, second = draw(rng, 3, 100, noise, cells=2)
        common = rng.normal(size=(3, 1)) if paired else 0.0
        found.append(difference(first + common + 0.7, second + common, paired=paired))
    covered = np.mean([one.low <= 0.7 <= one.high for one in found])
    # Welch's interval of two cells with three seeds each is a little wide.
    assert 0.93 <= covered <= (0.97 if paired else 0.98)


def test_the_plain_bootstrap_would_not_cover():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(REPETITIONS):
        low, high = percentile(draw(rng, 3, 50, NOISE[0])[0], rng)
        found.append(low <= 0 <= high)
    assert np.mean(found) < 0.85


def test_intervals_of_exact_match_cover():
    """Items of known difficulty, runs of known skill: truth is the mean over both."""
    rng = np.random.default_rng(4)
    grid = rng.normal(size=200_000)
    truth = (1 / (1 + np.exp(-(0.8 + math.sqrt(1.5**2 + 0.3**2) * grid)))).mean()
    covered = []
    for _ in range(REPETITIONS):
        logit = 0.8 + 1.5 * rng.normal(size=(1, 200)) + 0.3 * rng.normal(size=(3, 1))
        found = mean((rng.random((3, 200)) < 1 / (1 + np.exp(-logit))).astype(float))
        covered.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("seeds, cells", [(3, 2), (3, 6), (5, 6), (2, 12)])
@pytest.mark.parametrize("noise", NOISE, ids=["seeds", "items", "both", "alike"])
def test_equal_methods_are_seldom_called_different(seeds, cells, noise):
    """In the family of all pairs, after moderation and Holm: at most one study of twenty has a false finding."""
    rng = np.random.default_rng(5)
    wrong = 0
    repetitions = {2: REPETITIONS, 6: 150, 12: 40}[cells]
    for _ in range(repetitions):
        scores = draw(rng, seeds, 60, noise, cells)
        pairs = [(a, b) for a in range(cells) for b in range(a)]
        found = [difference(scores[a], scores[b], paired=True) for a, b in pairs]
        spreads = moderate([one.spread for one in found], (cells - 1) * (seeds - 1))
        p_values = [Estimate(value=one.value, spread=spread).p for one, spread in zip(found, spreads, strict=True)]
        wrong += min(holm(p_values)) < 0.05
    assert wrong / repetitions <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repetitions)


def test_moderated_intervals_of_cells_cover_and_are_narrower():
    rng = np.random.default_rng(6)
    covered, before, after = [], [], []
    for _ in range(112):
        found = [mean(one) for one in draw(rng, 3, 50, NOISE[0], cells=9)]
        spreads = moderate([one.spread for one in found], 9 * 2)
        pooled = [Estimate(value=one.value, spread=spread) for one, spread in zip(found, spreads, strict=True)]
        covered += [one.low <= 0 <= one.high for one in pooled]
        before += [one.half for one in found]
        after += [one.half for one in pooled]
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(after) < 0.65 * np.mean(before)


def test_a_cell_of_other_noise_keeps_much_of_its_own():
    quiet = [Spread(seed=1e-6 * (1 + n / 10), seed_df=4) for n in range(8)]
    loud = Spread(seed=1.0, seed_df=4)
    moderated = moderate([*quiet, loud], 36)
    assert moderated[-1].seed > 0.5 and moderated[0].seed < 1e-3


def test_one_seed_shows_the_noise_of_items_alone_and_one_number_none():
    scores = np.random.default_rng(7).normal(size=(1, 400))
    one = mean(scores)
    assert one.half == pytest.approx(1.966 * scores.std(ddof=1) / 20, rel=2e-2)
    assert math.isnan(mean(np.ones((1, 1))).half) and math.isnan(mean(np.ones((1, 1))).p)


def test_seeds_alone_are_the_t_interval():
    found = mean(np.array([[1.0], [2.0], [3.0]]))
    assert (found.value, found.half) == (2.0, pytest.approx(4.303 / math.sqrt(3), rel=1e-3))


def test_a_ratio_of_sums_varies_as_its_influence():
    """Against the spread of the ratio itself over 4,000 draws of its items."""
    rng = np.random.default_rng(8)
    tokens = rng.integers(1, 20, size=(4000, 300)).astype(float)
    losses = tokens * rng.gamma(2.0, 0.5, size=(4000, 300))
    scores = linearised(losses, tokens)
    assert scores.mean(1) == pytest.approx(losses.sum(1) / tokens.sum(1))
    assert mean(scores[:1]).spread.variance == pytest.approx((losses.sum(1) / tokens.sum(1)).var(), rel=0.2)


def test_the_best_cell_is_told_by_how_sure_it_is():
    chances = chance_of_best(np.array([[0.1, 0.2, 0.1], [0.9, 0.8, 0.9], [0.15, 0.14, 0.16]]), lower_is_better=True)
    assert chances.sum() == pytest.approx(1) and chances[1] == 0 and chances[0] > 0.2 and chances[2] > 0.2


def test_the_smallest_difference_is_found_four_times_of_five():
    """Simulated: at the difference that it names, the paired test finds it in 80 % of studies."""
    seeds, items, seed_sd, item_sd = 4, 50, 0.5, 1.0
    size = smallest_difference(seeds, seed_sd=seed_sd, items=items, item_sd=item_sd)
    rng = np.random.default_rng(9)
    hits = []
    for _ in range(REPETITIONS):
        gap = size + seed_sd * rng.normal(size=(seeds, 1)) + item_sd * rng.normal(size=(1, items))
        hits.append(difference(gap, np.zeros_like(gap), paired=True).p < 0.05)
    assert 0.75 <= np.mean(hits) <= 0.86


def test_the_smallest_difference_shrinks_with_seeds_and_grows_with_comparisons():
    sizes = [smallest_difference(seeds, seed_sd=1.0) for seeds in (1, 2, 3, 5, 50)]
    assert sizes[0] == math.inf and sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx((1.96 + 0.84) / math.sqrt(50), rel=0.05)
    assert smallest_difference(3, seed_sd=1.0, comparisons=10) > smallest_difference(3, seed_sd=1.0)
    assert smallest_difference(3, seed_sd=0.0) == 0.0
