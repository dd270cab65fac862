import io
import logging
import sys

import pytest

from harness.logging.progress import Progress, describe
from harness.logging.setup import ConsoleHandler

ROW = {
    "train/loss": 0.812,
    "train/lr/llm": 1e-3,
    "perf/tokens_per_s": 1830.4,
    "perf/data_wait_fraction": 0.004,
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(caplog: pytest.LogCaptureFixture, steps: range, seconds: float, total: int, **options: int) -> list[str]:
    caplog.set_level(logging.INFO, logger="harness.logging.progress")
    clock = Clock()
    with Progress(total, steps.start - 1, bar=False, clock=clock, **options) as progress:
        for step in steps:
            clock.now += seconds
            progress.update(step, {"train/loss": 1.0})
    return caplog.messages


def test_the_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="harness.logging.progress")
    clock = Clock()
    with Progress(225, bar=False, clock=clock) as progress:
        progress.update(4, {})
        clock.now += 14.0
        progress.update(39, {})
        clock.now += 0.4
        progress.update(40, ROW)
    assert caplog.messages == ["step 40/225 loss 0.812 lr 1.0e-03 1,830 tok/s wait 0.4 % left 0:01:14"]


def test_at_most_one_line_in_ten_seconds_and_always_the_first_and_last(caplog: pytest.LogCaptureFixture) -> None:
    messages = run(caplog, range(1, 101), 0.5, 100)
    assert [message.split()[1] for message in messages] == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]


def test_validation_is_always_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="harness.logging.progress")
    with Progress(100, bar=False, clock=Clock()) as progress:
        progress.update(1, {"train/loss": 1.0})
        progress.update(2, {"train/loss": 1.0})
        progress.update(2, {"val/loss": 0.70112, "val/exact_match": 0.5})
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("step 2/100 val/loss 0.7011 val/exact_match 0.5 left")


def test_time_left_leaves_out_the_slow_first_step_and_counts_hours(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="harness.logging.progress")
    clock = Clock()
    with Progress(1002, 0, bar=False, clock=clock, every_seconds=0) as progress:
        clock.now += 500.0
        progress.update(1, {"train/loss": 1.0})
        clock.now += 10.0
        progress.update(2, {"train/loss": 1.0})
    assert [message.rpartition("left ")[2] for message in caplog.messages] == ["-:--:--", "2:46:40"]


def test_time_left_of_a_resumed_run_counts_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    messages = run(caplog, range(91, 94), 12.0, 100)
    assert messages[-1] == "step 93/100 loss 1 left 0:01:24"


def test_learning_rates_that_differ_are_all_named() -> None:
    row = {"train/loss": 1.0, "train/lr/llm": 1e-4, "train/lr/vit": 1e-6}
    assert describe(row) == "loss 1 lr 1.0e-04 (llm) 1.0e-06 (vit)"


def test_of_many_learning_rates_the_range_is_told() -> None:
    row = {f"train/lr/llm_layer_{number:02d}": 1e-4 / 2**number for number in range(10)}
    assert describe(row) == "lr 2.0e-07 to 1.0e-04"


def test_utilisation_and_what_is_missing() -> None:
    assert describe({"perf/mfu": 0.314}) == "mfu 31.4 %"
    assert describe({"train/lr/llm": 1e-4}) == "lr 1.0e-04"
    assert describe({}) == ""


def test_a_terminal_gets_a_bar_and_the_file_gets_the_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="harness.logging.progress")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = ConsoleHandler()
    logger = logging.getLogger("harness.logging.progress")
    logger.addHandler(handler)
    handler.addFilter(lambda record: not record.file_only if hasattr(record, "file_only") else True)
    try:
        with Progress(50, 10) as progress:
            progress.update(20, ROW | {"val/loss": 0.7})
        assert sys.stderr is terminal
    finally:
        logger.removeHandler(handler)
    shown = terminal.getvalue()
    assert "20/50" in shown and "loss 0.812 lr 1.0e-03 1,830 tok/s" in shown and "val/loss 0.7" in shown
    assert "step 20/50" not in shown
    assert [record.file_only for record in caplog.records if "step 20/50" in record.getMessage()] == [True]


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10) as progress:
        progress.update(1, {"train/loss": 1.0})
    assert capsys.readouterr() == ("", "")
