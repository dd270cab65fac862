import math

import pytest

from harness.trainer.callback import Best


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("val/loss", [2.0, 1.0, 1.0, 3.0], 1.0), ("val/exact_match", [0.1, 0.9, 0.5], 0.9)]
)
def test_best_is_lowest_for_a_loss_and_highest_else(metric, values, best):
    tracked = Best(metric)
    for step, value in enumerate(values):
        tracked.update(value, step)
    assert (tracked.value, tracked.step) == (best, 1)


@pytest.mark.parametrize(("metric", "better"), [("val/loss", 1.0), ("val/exact_match", 0.5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_the_best_nor_in_the_way(metric, better, bad):
    tracked = Best(metric)
    assert not tracked.update(bad, 1)
    assert (tracked.value, tracked.step) == (None, None)
    assert tracked.update(better, 2)
    assert not tracked.update(bad, 3)
    assert (tracked.value, tracked.step) == (better, 2)
