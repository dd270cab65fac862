from itertools import islice

import pytest

from harness.data.order import micro_batches


def _take(count, *, seed=1, rows=10, batch=3, world=1, rank=0, shuffle=True, start=0):
    return list(islice(micro_batches(seed, rows, batch, world, rank, shuffle, start), count))


def _stream(batches):
    return [row for batch in batches for row in batch]


def test_every_row_once_an_epoch_though_batches_span_epochs():
    stream = _stream(_take(10))
    for epoch in range(3):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert all(len(batch) == 3 for batch in _take(10))


def test_epochs_and_seeds_differ():
    rows = 100
    one, two = (_stream(_take(2, rows=rows, batch=rows, seed=seed)) for seed in (1, 2))
    epochs = [one[:rows], one[rows:], two[:rows], two[rows:]]
    # Epoch 1 of seed 1 equals epoch 0 of seed 2 where the two are only added.
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_partition_each_global_micro_batch(world):
    whole = _take(12, batch=2 * world)
    parts = [_take(12, batch=2, world=world, rank=rank) for rank in range(world)]
    assert [_stream(slices) for slices in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("start", [0, 1, 3, 4, 17])
def test_resume_is_the_tail_of_the_full_stream(start):
    assert _take(20 - start, world=2, rank=1, start=start) == _take(20, world=2, rank=1)[start:]


def test_without_shuffling_rows_follow_each_other():
    assert _take(4, shuffle=False) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1]]


def test_a_batch_may_hold_more_rows_than_an_epoch():
    assert _take(2, rows=2, batch=5, shuffle=False) == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


def test_the_order_is_the_recorded_one():
    """A change here breaks the resume of every run that is under way."""
    assert _stream(_take(4)) == [3, 8, 5, 1, 6, 2, 4, 9, 0, 7, 4, 5]
