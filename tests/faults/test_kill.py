"""kill -9 at any moment: the run that goes on is the one that it would have been, bit for bit."""

import pytest

MODES = ("lora", "full", "galore", "packed", "accumulation", "background", "dora", "lisa", "adalora")
pytestmark = pytest.mark.faults


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(faults, bench, draw, name):
    assert faults.kill_at_random(bench, "lora", name, draw)["ok"], name


@pytest.mark.slow
def test_a_run_killed_in_a_save_has_whole_checkpoints_and_goes_on(faults, bench, draw, name):
    found = faults.kill_in_save(bench, "lora", name, draw)
    assert found["ok"], found


@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode(faults, bench, draw, name, mode, kill):
    found = faults.kill_at_random(bench, mode, name, draw)
    assert found["ok"], found


@pytest.mark.parametrize("mode", ["lora", "background"])
def test_in_the_middle_of_a_save(faults, bench, draw, name, mode, kill):
    found = faults.kill_in_save(bench, mode, name, draw)
    assert found["ok"], found


def test_modes_are_those_of_the_benchmark(faults):
    assert set(MODES) == faults.MODES.keys()
