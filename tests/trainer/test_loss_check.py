import math

import numpy as np
import pytest
import torch

from harness.logging.metrics import MetricsFile, read
from harness.trainer.loss_check import MIN_LOSSES, WINDOW, DivergedError, LossCheck
from harness.trainer.meter import Totals
from harness.trainer.recorder import SHOWN, Recorder
from harness.trainer.standard import OnNonfinite


def skipping(rows=3):
    return LossCheck(on_nonfinite=OnNonfinite.skip, max_nonfinite=rows)


def look(check, *losses):
    return [check.look(loss, 1.0) for loss in losses]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_without_skipping_the_first_step_that_is_not_finite_ends_the_run(loss, norm):
    assert LossCheck().look(loss, norm).diverged
    assert not skipping().look(loss, norm).diverged


def test_so_many_in_a_row_end_a_run_that_skips():
    check = skipping(rows=3)
    verdicts = look(check, 1.0, math.nan, math.nan, 1.0, math.nan, math.nan, math.nan)
    assert [verdict.diverged for verdict in verdicts] == [False] * 6 + [True]
    assert [verdict.nonfinite_in_a_row for verdict in verdicts] == [0, 1, 2, 0, 1, 2, 3]
    assert check.nonfinite_steps == 5 and verdicts[2].figures == {"train/nonfinite_steps": 2}


def test_a_scalers_overflow_is_no_step_that_is_not_finite():
    check = skipping(rows=1)
    check.skips_overflow = True
    assert not check.look(1.0, math.inf).diverged and check.nonfinite_steps == 0
    assert check.look(math.nan, math.inf).diverged


def test_noise_has_no_spikes_and_what_is_far_above_it_is_one():
    losses = 2 + 0.2 * np.random.default_rng(0).standard_normal(5000)
    check = LossCheck(spike_mads=8.0)
    look(check, *losses)
    assert check.loss_spikes == 0
    (verdict,) = look(check, 4.0)
    assert verdict.spike.startswith("loss 4 is a spike: the last 100 have median 1.9") and not verdict.diverged
    assert verdict.figures == {"train/loss_spikes": 1}
    assert look(check, 3.0, 0.1) == look(skipping(), 3.0, 0.1), "four spreads are none, nor is a fall"


def test_a_level_that_stays_is_no_spike_for_ever():
    check = LossCheck(spike_mads=8.0)
    look(check, *[1.0] * WINDOW, *[5.0] * WINDOW)
    assert check.loss_spikes == WINDOW / 2


def test_little_is_said_of_few_losses_and_of_small_ones():
    check = LossCheck(spike_mads=8.0)
    look(check, *[1e-4] * (MIN_LOSSES - 1), 50.0, 0.49)
    assert check.loss_spikes == 0
    look(check, 0.51)
    assert check.loss_spikes == 1


def record(recorder, first, losses):
    for step, loss in enumerate(losses, start=first):
        rows = [f"a.jsonl:{step}", f"a.jsonl:{step}", *(f"b.jsonl:{number}" for number in range(SHOWN))]
        recorder.step(step, torch.tensor(loss), torch.tensor(1.0), {"llm": 1e-3}, origins=rows)
    recorder.flush(Totals(steps=len(losses), seconds=1.0), {})
    recorder.commit({})


def test_warnings_name_step_and_rows_and_a_resumed_run_counts_on(tmp_path, caplog):
    losses = [1.0, math.nan, 9.0, math.nan, math.inf]
    checks = [LossCheck(OnNonfinite.skip, 3, 8.0) for _ in range(2)]
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        recorder = Recorder(file, [], None, world_size=1, check=checks[0])
        record(recorder, 1, [1.0] * MIN_LOSSES)
        record(recorder, MIN_LOSSES + 1, losses)
        rows = read(file.path)
        assert (
            "step 23: loss 9 is a spike: the last 21 have median 1, spread 0; its rows: a.jsonl:23, b.j" in caplog.text
        )
        assert "b.jsonl:98 and 1 more" in caplog.text
        assert "step 25: loss inf, gradient norm 1.0, 2 steps in a row; its rows: a.jsonl:25" in caplog.text
        assert [row.get("train/nonfinite_steps") for row in rows[-5:]] == [None, 1, None, 2, 3]
        assert [row.get("train/loss_spikes") for row in rows[-5:]] == [None, None, 1, None, None]
        checks[1].recall([{"step": 0, "val/loss": 2.0}, *rows])
        assert checks[1] == checks[0]
        with pytest.raises(DivergedError, match=r"step 26: loss nan, gradient norm 1\.0, 3 steps in a row") as raised:
            record(recorder, MIN_LOSSES + 6, [math.nan, 1.0])
        assert raised.value.step == 26 and len(read(file.path)) == 27
