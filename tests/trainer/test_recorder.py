import math

import pytest
import torch

from harness.logging.metrics import MetricsFile, read
from harness.trainer.loss_check import MAX_OVERFLOWS, DivergedError
from harness.trainer.meter import Totals
from harness.trainer.recorder import Recorder


@pytest.fixture
def recorder(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        yield Recorder(file, [], None, world_size=1)


def step(recorder, number, loss):
    recorder.step(number, torch.tensor(loss), torch.tensor(2.0), {"llm": 1e-3})


def test_each_step_is_one_row_and_validation_joins_it(recorder):
    recorder.write_start({"val/loss": 3.0})
    step(recorder, 1, 1.5)
    step(recorder, 2, 1.25)
    assert recorder.num_pending == 2
    assert recorder.flush(Totals(steps=2, tokens=100, seconds=2.0), {"memory/peak_allocated_gib": 1.0}) == 1.25
    recorder.commit({"val/loss": 2.0})
    rows = read(recorder.file.path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1] == {"step": 1, "train/grad_norm": 2.0, "train/loss": 1.5, "train/lr/llm": 1e-3}
    assert (rows[2]["val/loss"], rows[2]["perf/tokens_per_s"], rows[2]["memory/peak_allocated_gib"]) == (2.0, 50.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_is_on_record(recorder, bad):
    step(recorder, 1, 1.0)
    step(recorder, 2, bad)
    with pytest.raises(DivergedError, match=r"step 2: loss (nan|inf)"):
        recorder.flush(Totals(steps=2, seconds=1.0), {})
    assert not math.isfinite(read(recorder.file.path)[-1]["train/loss"])


def overflow(recorder, number, loss=1.0):
    recorder.step(number, torch.tensor(loss), torch.tensor(math.inf), {"llm": 1e-3})
    return recorder.flush(Totals(steps=1, seconds=1.0), {})


@pytest.fixture
def scaled(recorder):
    """A recorder under fp16."""
    recorder.check.skips_overflow = True
    return recorder


def test_an_overflow_is_tolerated_under_a_gradient_scaler_only(recorder):
    with pytest.raises(DivergedError, match=r"step 1: loss 1\.0, gradient norm inf"):
        overflow(recorder, 1)
    recorder.check.skips_overflow = True
    assert overflow(recorder, 2) == 1.0


def test_too_many_overflows_in_a_row_stop_the_run(scaled):
    for number in range(1, MAX_OVERFLOWS):
        overflow(scaled, number)
    with pytest.raises(DivergedError, match=f"step {MAX_OVERFLOWS}: "):
        overflow(scaled, MAX_OVERFLOWS)


def test_a_step_that_is_taken_resets_the_count_of_overflows(scaled):
    for number in range(1, MAX_OVERFLOWS):
        overflow(scaled, number)
    step(scaled, MAX_OVERFLOWS, 1.0)
    scaled.flush(Totals(steps=1, seconds=1.0), {})
    for number in range(MAX_OVERFLOWS + 1, 2 * MAX_OVERFLOWS):
        overflow(scaled, number)
    with pytest.raises(DivergedError, match=f"step {2 * MAX_OVERFLOWS}: "):
        overflow(scaled, 2 * MAX_OVERFLOWS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_under_a_scaler_too(scaled, bad):
    with pytest.raises(DivergedError, match=r"step 1: loss (nan|inf)"):
        overflow(scaled, 1, loss=bad)


def test_abandon_writes_steps_that_were_not_read_yet(recorder):
    step(recorder, 1, 1.5)
    step(recorder, 2, 1.25)
    recorder.abandon()
    assert [(row["step"], row["train/loss"]) for row in read(recorder.file.path)] == [(1, 1.5), (2, 1.25)]
    recorder.abandon()
    assert len(read(recorder.file.path)) == 2


def test_abandon_writes_the_row_whose_validation_failed(recorder):
    step(recorder, 1, 1.5)
    recorder.flush(Totals(steps=1, tokens=10, seconds=1.0), {})
    assert read(recorder.file.path) == []
    recorder.abandon()
    (row,) = read(recorder.file.path)
    assert (row["step"], row["perf/tokens_per_s"]) == (1, 10.0)


def test_abandon_leaves_steps_that_need_the_other_ranks(tmp_path):
    """A sum over ranks would wait for ever for one that is gone."""
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        recorder = Recorder(file, [], None, world_size=2)
        step(recorder, 1, 1.5)
        recorder.abandon()
        assert read(file.path) == []
