"""A signal: the step is finished and saved, and the exit code says which it was."""

import signal

import pytest

pytestmark = pytest.mark.faults


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_code(faults, bench, name, number):
    found = faults.end_by_signal(bench, "lora", name, number)
    assert found["ok"] and found["seconds"] < 30, found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("mode", ["full", "background", "accumulation"])
def test_in_every_mode(faults, bench, name, mode, number):
    found = faults.end_by_signal(bench, mode, name, number, after=2)
    assert found["ok"] and found["seconds"] < 30, found
