"""A signal: the step is finished and saved, and the exit code says which it was."""

import os
import signal
from pathlib import Path

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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_workers_that_get_it_too_go_on_until_the_step_is_done(faults, tmp_path, number):
    def send_to_all(pid, number):
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(workers) >= 2
        for one in (*map(int, workers), pid):
            os.kill(one, number)

    # Micro-batches of a step that are still to be made.
    mode = ("trainer.batch_size=1", "trainer.accumulate=4", "data.workers=2", "data.prefetch=1")
    bench = faults.Bench(tmp_path, {"workers": mode})
    found = faults.end_by_signal(bench, "workers", "signalled", number, send=send_to_all)
    assert found["ok"], found
