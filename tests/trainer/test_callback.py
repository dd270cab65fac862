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
