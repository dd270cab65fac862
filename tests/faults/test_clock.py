"""The time of day jumps by hours: nothing that a run does depends on it."""

import pytest

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def clock_faults(scripts):
    return scripts("clock_faults")


@pytest.fixture(scope="module")
def bench(clock_faults, tmp_path_factory):
    pytest.importorskip("tensorboard")
    return clock_faults.make_bench(tmp_path_factory.mktemp("clock"))


@pytest.mark.slow
def test_a_killed_run_goes_on_whatever_the_clock(clock_faults, bench, draw):
    found = clock_faults.killed(bench, 0, draw)
    assert found["ok"], found


def test_at_any_moment(clock_faults, bench, draw, kill):
    found = clock_faults.killed(bench, 1 + kill, draw)
    assert found["ok"], found
