import os
import signal

import pytest

from harness.experiment.end import end_of
from harness.trainer.stop import Preempted, Stop


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    stop = Stop()
    stop.install(interactive=True)
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_noted_and_ends_the_run_with_its_code(stop, number):
    os.kill(os.getpid(), number)
    assert stop.number == number and not stop.agreed
    stop.agree(1)
    with pytest.raises(Preempted, match=number.name) as raised:
        stop.leave()
    assert stop.agreed and end_of(raised.value) == ("preempted", 128 + number)


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_stops_at_once(stop):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_rank_that_got_none_leaves_with_the_others(stop):
    stop.agree(1)
    with pytest.raises(Preempted, match="SIGTERM"):
        stop.leave()
