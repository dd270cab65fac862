"""kill -9 and resume: trackers have each step once."""

import time

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


@pytest.mark.slow
def test_a_kill_behind_the_summary_takes_nothing_from_the_tracker(faults, tracker_faults, bench, draw, name):
    """W&B takes seconds to close a run; one that is resumed as finished sees to the rest."""
    folder = bench.prepare(name, *tracker_faults.MODES["wandb"])
    pid = bench.start(folder)
    while not folder.summary.is_file():
        time.sleep(0.001)
    faults.kill(pid, draw)
    summary = folder.read_summary()
    assert summary["status"] == "completed" and not folder.read_status()["tracked"]
    for _ in range(2):
        assert bench.resume(folder, *tracker_faults.MODES["wandb"]) == 0
        assert tracker_faults.shows_all_once(folder, "wandb") and folder.read_summary() == summary
        assert folder.read_status()["tracked"] and folder.read_status()["state"] == "completed"


def test_after_many_kills(tracker_faults, bench, draw, kill):
    found = tracker_faults.killed(bench, 10 + kill, draw)
    assert found["ok"], found
