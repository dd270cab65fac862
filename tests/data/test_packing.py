"""Plans of packs and batches; that a packed batch computes what a padded one does stands in tests/model."""

import time
from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.packing import Units, best_fit, efficiency, in_order, singles, token_batches

CAPACITY = 40
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=120).map(lambda values: np.array(values, dtype=np.int32))


def _captions(count):
    """Lengths around those of the caption workload: 14 to 28 patches a side and 160 to 320 tokens of text."""
    draw = np.random.default_rng(1)
    sides = draw.integers(14, 29, (2, count))
    return (sides[0] * sides[1] + draw.integers(160, 321, count)).astype(np.int32)


def _lists(units):
    return [units[number].tolist() for number in range(len(units))]


def _assert_partition(units, num_samples):
    assert sorted(units.members.tolist()) == list(range(num_samples))
    assert (units.bounds[0], units.bounds[-1]) == (0, num_samples)
    assert (np.diff(units.bounds) > 0).all()
    assert (units.members.dtype, units.bounds.dtype) == (np.int32, np.int64)


def _rooms_of_best_fit_one_by_one(lengths, capacity):
    """The textbook algorithm: each sample, longest first, into the smallest room that holds it."""
    rooms = []
    for length in sorted(lengths.tolist(), reverse=True):
        place = bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else capacity
        insort(rooms, room - length)
    return rooms


def test_units_are_sets_of_samples():
    units = Units(np.array([4, 0, 2, 1, 3], dtype=np.int32), np.array([0, 2, 3, 5]))
    assert len(units) == 3 and _lists(units) == [[4, 0], [2], [1, 3]]
    assert [unit.tolist() for unit in units] == _lists(units)
    assert units.sums(np.array([1, 10, 100, 1000, 10000])).tolist() == [10001, 100, 1010]
    assert units.sums(np.array([0.5, 1, 1, 1, 0.25])).tolist() == [0.75, 1, 2]
    for outside in (3, -1):
        with pytest.raises(IndexError, match=str(outside)):
            units[outside]


def test_sums_do_not_wrap_around():
    assert Units(np.arange(3, dtype=np.int32), np.array([0, 3])).sums(np.full(3, 2**30, dtype=np.int32)) == 3 * 2**30


def test_singles_are_the_samples_in_order():
    assert _lists(singles(3)) == [[0], [1], [2]]
    _assert_partition(singles(3), 3)


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 5))
def test_packs_are_those_of_best_fit_decreasing(lengths, seed):
    packs = best_fit(lengths, CAPACITY, seed)
    _assert_partition(packs, len(lengths))
    rooms = sorted((CAPACITY - packs.sums(lengths)).tolist())
    assert rooms == _rooms_of_best_fit_one_by_one(lengths, CAPACITY)
    assert all(lengths[pack].tolist() == sorted(lengths[pack].tolist(), reverse=True) for pack in packs)


def test_captions_fill_packs_to_97_percent():
    lengths = _captions(5000)
    assert efficiency(best_fit(lengths, 8192, seed=0), lengths, 8192) > 0.97


def test_efficiency_is_the_share_that_is_no_filling():
    assert efficiency(best_fit(np.array([6, 4, 5]), 10, seed=0), np.array([6, 4, 5]), 10) == 0.75


def test_the_seed_decides_which_equal_lengths_go_together():
    lengths = np.full(80, 500)
    plans = [_lists(best_fit(lengths, 1000, seed)) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert {len(plan) for plan in plans} == {40}
    # Not in the order of the files: neighbours there would always share a pack.
    assert any(abs(pack[0] - pack[1]) > 1 for pack in plans[0])


@settings(deadline=None)
@given(lengths=LENGTHS, padded=st.booleans())
def test_units_in_order_take_what_follows_as_far_as_it_fits(lengths, padded):
    units = _lists(in_order(lengths, CAPACITY, padded))

    def size(unit):
        return max(lengths[unit]) * len(unit) if padded else sum(lengths[unit])

    assert [sample for unit in units for sample in unit] == list(range(len(lengths)))
    assert all(size(unit) <= CAPACITY for unit in units)
    assert all(size([*unit, following[0]]) > CAPACITY for unit, following in pairwise(units))


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 5))
def test_padded_batches_keep_the_budget_and_take_what_fits(lengths, seed):
    batches = token_batches(lengths, CAPACITY, padded=True, seed=seed)
    _assert_partition(batches, len(lengths))
    assert all(lengths[batch].max() * len(batch) <= CAPACITY for batch in batches)
    # One sample more would be over the budget, in each but the last.
    assert all(lengths[batch].max() * (len(batch) + 1) > CAPACITY for batch in _lists(batches)[:-1])
    # Like length: no sample of a batch is shorter than one of the next.
    falling = lengths[batches.members].tolist()
    assert falling == sorted(falling, reverse=True)


def _fewest_batches(lengths, budget):
    """By trying everything: the longest sample goes with each subset of the others that the budget allows."""
    if not lengths:
        return 0
    longest, rest = lengths[0], lengths[1:]
    fewest = len(lengths)
    for mask in range(1 << len(rest)):
        if mask.bit_count() < budget // longest:
            left = [length for place, length in enumerate(rest) if not mask >> place & 1]
            fewest = min(fewest, 1 + _fewest_batches(left, budget))
    return fewest


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 10), max_size=6))
def test_no_other_padded_batches_are_fewer(lengths):
    batches = token_batches(np.array(lengths, dtype=np.int32), 20, padded=True, seed=0)
    assert len(batches) == _fewest_batches(sorted(lengths, reverse=True), 20)


def test_batches_without_padding_are_filled_as_packs_are():
    lengths = _captions(5000)
    batches = token_batches(lengths, 8192, padded=False, seed=3)
    assert _lists(batches) == _lists(best_fit(lengths, 8192, seed=3))


@pytest.mark.parametrize("plan", [best_fit, lambda *args: token_batches(args[0], args[1], True, args[2])])
@pytest.mark.parametrize("length", [0, 11])
def test_a_sample_that_fits_nowhere_is_a_bug(plan, length):
    with pytest.raises(AssertionError, match="lengths are 1 to capacity"):
        plan(np.array([5, length]), 10, 0)


def test_a_million_samples_are_planned_in_seconds():
    """Takes 0.2 s on an idle core, and 2.4 s where samples are handled one by one."""
    lengths = _captions(1_000_000)
    begun = time.process_time()
    packs = best_fit(lengths, 8192, seed=0)
    assert time.process_time() - begun < 1.5
    assert efficiency(packs, lengths, 8192) > 0.98
