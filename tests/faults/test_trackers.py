"""kill -9 and resume: trackers have each step once."""

import pytest

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def tracker_faults(scripts):
    return scripts("tracker_faults")


@pytest.fixture(scope="module")
def bench(tracker_faults, tmp_path_factory):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    return tracker_faults.make_bench(tmp_path_factory.mktemp("trackers"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 3])
def test_each_step_is_shown_once(tracker_faults, bench, draw, number):
    found = tracker_faults.killed(bench, number, draw)
    assert found["ok"], found


def test_after_many_kills(tracker_faults, bench, draw, kill):
    found = tracker_faults.killed(bench, 10 + kill, draw)
    assert found["ok"], found
