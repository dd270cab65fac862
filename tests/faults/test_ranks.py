"""Several processes: a kill of all or of one, and signals; the run that goes on is the one that it would have been."""

import signal

import pytest

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def rank_faults(scripts):
    return scripts("rank_faults")


@pytest.fixture(scope="module")
def bench(rank_faults, tmp_path_factory):
    return rank_faults.make_bench(tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tree", "one"])
def test_killed_ranks_go_on_as_if_nothing_had_been(rank_faults, bench, faults, draw, name, way):
    found = faults.kill_at_random(bench, "ddp, workers", name, draw, rank_faults.KILLS[way])
    assert found["ok"] and found["code"] in (0, 1, -signal.SIGKILL), found


@pytest.mark.slow
def test_two_ranks_end_by_a_signal_between_steps(rank_faults, bench, draw):
    found = rank_faults.signalled(bench, 2, draw)
    assert found["ok"] and (found["code"], found["to"]) == (143, "all") and found["seconds"] < 30, found


def test_in_every_mode(rank_faults, bench, draw):
    for number in range(2 * len(rank_faults.MODES)):
        found = rank_faults.killed(bench, number, draw)
        assert found["ok"], found


def test_by_each_signal(rank_faults, bench, draw, kill):
    found = rank_faults.signalled(bench, 10 + kill, draw)
    assert found["ok"], found
