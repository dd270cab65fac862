import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.order import WINDOW, micro_batches


def _take(count, *, seed=1, units=10, batch=3, world=1, rank=0, shuffle=True, start=0, **values):
    stream = micro_batches(seed, units, batch, world, rank, shuffle, start, **values)
    return [chosen.tolist() for chosen in islice(stream, count)]


def _stream(batches):
    return [unit for batch in batches for unit in batch]


def _global(count, world, **settings):
    """The units of each micro-batch on all ranks."""
    parts = [_take(count, world=world, rank=rank, **settings) for rank in range(world)]
    return [_stream(shares) for shares in zip(*parts, strict=True)]


@st.composite
def _orders(draw):
    units = draw(st.integers(1, 60))
    value = st.none() | st.integers(0, 2**16).map(
        lambda seed: np.random.default_rng(seed).integers(0, 9, units, dtype=np.uint16)
    )
    return {
        "units": units,
        "batch": draw(st.integers(1, 5)),
        "world": draw(st.integers(1, 4)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "accumulate": draw(st.integers(1, 4)),
        **{name: draw(value) for name in ("lengths", "visual", "tokens")},
    }


@settings(deadline=None)
@given(_orders())
def test_every_unit_once_an_epoch_over_all_ranks(order):
    """An epoch is a stretch of the stream; the micro-batches at its ends may hold units of its neighbours."""
    units, share = order["units"], order["batch"] * order["world"]
    batches = _global(-(-3 * units // share), **order)
    assert all(len(batch) == share for batch in batches)
    for epoch in range(3):
        inner = batches[-(-epoch * units // share) : (epoch + 1) * units // share]
        assert len(set(_stream(inner))) == len(_stream(inner))
    # Up to the end of the micro-batch that holds an epoch's last unit, each unit came as often as epochs ended.
    seen = np.bincount(_stream(batches), minlength=units)
    assert seen.min() >= 3 and seen.sum() == len(batches) * share


@settings(deadline=None)
@given(_orders(), st.integers(0, 30))
def test_resume_is_the_tail_of_the_full_stream(order, start):
    rank = order["world"] - 1
    assert _take(8, rank=rank, start=start, **order) == _take(start + 8, rank=rank, **order)[start:]


def test_every_unit_once_an_epoch_though_batches_span_epochs():
    stream = _stream(_take(10))
    for epoch in range(3):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert all(len(batch) == 3 for batch in _take(10))


def test_epochs_and_seeds_differ():
    units = 100
    one, two = (_stream(_take(2, units=units, batch=units, seed=seed)) for seed in (1, 2))
    epochs = [one[:units], one[units:], two[:units], two[units:]]
    # Epoch 1 of seed 1 equals epoch 0 of seed 2 where the two are only added.
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_slices_of_each_global_micro_batch(world):
    assert _global(12, world, batch=2) == _take(12, batch=2 * world)


def test_without_shuffling_units_follow_each_other():
    assert _take(4, shuffle=False) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1]]


def test_a_batch_may_hold_more_units_than_an_epoch():
    assert _take(2, units=2, batch=5, shuffle=False) == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


def test_the_order_is_the_recorded_one():
    """A change here breaks the resume of every run that is under way."""
    assert _stream(_take(4)) == [3, 8, 5, 1, 6, 2, 4, 9, 0, 7, 4, 5]


def test_values_of_other_units_are_a_bug():
    with pytest.raises(AssertionError, match="a value a unit"):
        _take(1, lengths=np.ones(9))


LENGTHS = np.random.default_rng(0).integers(10, 1000, 4000)


def _padding(batches):
    """Share of a padded batch that is padding."""
    lengths = [LENGTHS[batch] for batch in batches]
    return 1 - sum(each.sum() for each in lengths) / sum(each.max() * len(each) for each in lengths)


def test_units_of_a_micro_batch_are_of_like_length():
    count = len(LENGTHS) // 8
    grouped, plain = (_take(count, units=len(LENGTHS), batch=8, lengths=each) for each in (LENGTHS, None))
    assert _padding(plain) > 0.35
    assert _padding(grouped) < 0.03


def test_micro_batches_of_like_length_come_in_random_order():
    """Neither the longest first nor the shortest: the mean length does not drift over an epoch, nor over a window."""
    batches = _take(500, units=len(LENGTHS), batch=8, lengths=LENGTHS)
    means = np.array([LENGTHS[batch].mean() for batch in batches])
    place = np.arange(500)
    assert abs(np.corrcoef(place, means)[0, 1]) < 0.1
    assert abs(np.corrcoef(place % WINDOW, means)[0, 1]) < 0.1
    # Three times as many epochs that begin with the longest as chance gives would be 6 of 100.
    longest_first = 0
    for seed in range(100):
        first = [LENGTHS[batch].max() for batch in _take(WINDOW, seed=seed, units=400, batch=8, lengths=LENGTHS[:400])]
        longest_first += first[0] == max(first)
    assert longest_first < 6


def test_grouped_epochs_differ_in_their_micro_batches():
    batches = _take(1000, units=len(LENGTHS), batch=8, lengths=LENGTHS)
    one, two = ({tuple(sorted(batch)) for batch in half} for half in (batches[:500], batches[500:]))
    assert len(one & two) < 5


@settings(deadline=None)
@given(_orders(), st.sampled_from([(1, 1), (1, 12), (2, 6), (12, 1), (3, 2), (4, 3)]))
def test_a_step_has_the_same_units_however_ranks_and_micro_batches_share_them(order, dealt):
    order |= {"batch": 1, "world": 1, "accumulate": 12}
    world, accumulate = dealt
    other = order | {"world": world, "accumulate": accumulate, "batch": 12 // world // accumulate}
    one, many = _global(5 * 12, **order), _global(5 * accumulate, **other)
    for step in range(5):
        mine = _stream(many[step * accumulate : (step + 1) * accumulate])
        assert sorted(mine) == sorted(_stream(one[step * 12 : (step + 1) * 12]))


def test_micro_batches_of_a_step_are_of_like_length():
    count = len(LENGTHS) // 8
    assert _padding(_take(count, units=len(LENGTHS), batch=8, accumulate=4, lengths=LENGTHS)) < 0.03


def test_grouping_without_shuffling_stays_within_windows():
    units = 3 * WINDOW * 2
    batches = _take(units // 2, units=units, batch=2, shuffle=False, lengths=LENGTHS[:units])
    for number, batch in enumerate(batches):
        assert {unit // (WINDOW * 2) for unit in batch} == {number // WINDOW}


def test_only_the_micro_batches_across_epochs_are_mixed():
    """1003 units leave each epoch beginning elsewhere within a micro-batch of 8."""
    lengths = np.arange(1003)
    batches = _take(400, units=1003, batch=8, lengths=lengths)
    wide = [number for number, batch in enumerate(batches) if np.ptp(lengths[batch]) > 100]
    ends = {epoch * 1003 // 8 for epoch in range(1, 4) if epoch * 1003 % 8}
    assert set(wide) <= ends


def _sums(values, count, world, **settings):
    """(count, world) sums of each rank's units."""
    parts = [_take(count, world=world, rank=rank, **settings) for rank in range(world)]
    return np.array([[values[batch].sum() for batch in part] for part in parts]).T


@settings(deadline=None)
@given(_orders())
def test_balance_is_never_worse_than_plain_slices(order):
    """The largest sum of visual tokens of a rank, and where that is the same, of tokens."""
    visual, tokens = (np.zeros(order["units"]) if order[key] is None else order[key] for key in ("visual", "tokens"))
    largest = []
    for given_values in (order, order | {"visual": None, "tokens": None}):
        sums = (_sums(values, 6, **given_values).max(axis=1) for values in (visual, tokens))
        largest.append(list(zip(*sums, strict=True)))
    assert all(dealt <= plain for dealt, plain in zip(*largest, strict=True))


@settings(deadline=None)
@given(_orders())
def test_dealing_moves_units_between_ranks_only(order):
    plain = order | {"visual": None, "tokens": None}
    assert [sorted(batch) for batch in _global(6, **order)] == [sorted(batch) for batch in _global(6, **plain)]


def test_one_rank_keeps_its_order():
    visual = np.arange(10)
    assert _take(8, visual=visual, tokens=visual) == _take(8)


def test_images_are_dealt_first_and_text_to_the_rank_with_fewer_tokens():
    values = {"visual": np.array([9, 9, 0, 0]), "tokens": np.array([90, 10, 50, 5])}
    dealt = [_take(1, units=4, batch=2, world=2, rank=rank, shuffle=False, **values) for rank in range(2)]
    assert dealt == [[[0, 3]], [[1, 2]]]


def _excess(sums):
    """How far the busiest rank is over the mean, on average: what the others wait."""
    return (sums.max(axis=1) / sums.mean(axis=1)).mean() - 1


def test_ranks_get_like_numbers_of_visual_tokens():
    draw = np.random.default_rng(3)
    visual = draw.integers(196, 784, 4000) * (draw.random(4000) < 0.7)
    settings = {"count": 60, "world": 4, "units": 4000, "batch": 16}
    assert _excess(_sums(visual, **settings)) > 0.1
    assert _excess(_sums(visual, **settings, visual=visual)) < 0.02


def test_text_evens_out_the_tokens():
    """Where half of the units have no image, these even out the tokens that the images leave uneven."""
    draw = np.random.default_rng(4)
    visual = draw.integers(196, 784, 4000) * (draw.random(4000) < 0.5)
    tokens = visual + draw.integers(20, 600, 4000)
    settings = {"count": 60, "world": 4, "units": 4000, "batch": 16}
    both = {"visual": visual, "tokens": tokens}
    assert _excess(_sums(visual, **settings, **both)) < 0.03
    assert _excess(_sums(tokens, **settings, **both)) < 0.01
    assert _excess(_sums(tokens, **settings, visual=visual)) > 0.05
    assert _excess(_sums(tokens, **settings, tokens=tokens)) < 0.005


def test_ranks_of_one_unit_are_balanced_by_grouping():
    visual = np.random.default_rng(5).integers(0, 6000, 4000)
    settings = {"count": 400, "world": 8, "units": 4000, "batch": 1}
    assert _excess(_sums(visual, **settings)) > 0.5
    assert _excess(_sums(visual, **settings, lengths=visual)) < 0.05


def test_a_million_units_are_no_list():
    """An epoch's order is one array of 8 MB; a list of as many numbers takes 40."""
    tracemalloc.start()
    _take(2, units=1_000_000, batch=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
