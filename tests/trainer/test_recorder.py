import math

import pytest
import torch

from harness.logging.metrics import MetricsFile, read
from harness.trainer.meter import Totals
from harness.trainer.recorder import DivergedError, Recorder


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
