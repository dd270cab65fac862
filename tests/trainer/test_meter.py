import pytest
import torch

from harness.trainer.meter import Meter, Totals


def test_rates_are_counts_over_seconds_times_ranks():
    rates = Totals(steps=4, samples=8, tokens=100, supervised=20, visual=40, seconds=2.0, wait_seconds=0.5).rates(2)
    assert rates == {
        "perf/tokens_per_s": 100.0,
        "perf/supervised_tokens_per_s": 20.0,
        "perf/visual_tokens_per_s": 40.0,
        "perf/samples_per_s": 8.0,
        "perf/step_time_s": 0.5,
        "perf/data_wait_fraction": 0.25,
    }


def test_steady_state_leaves_warm_up_and_pauses_out(make_batch, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter, batch = Meter(_clock=0.0), make_batch(0)
    for seconds in (10.0, 10.0, 10.0, 1.0):
        meter.add(batch, torch.tensor(1.0))
        meter.end_step()
        now[0] += seconds
        meter.end_interval(wait_seconds=0.0)
        with meter.paused():
            now[0] += 100.0
    assert meter.total.seconds == pytest.approx(31.0)
    assert (meter.steady.steps, meter.steady.seconds) == (1, pytest.approx(1.0))


def test_a_step_sums_its_micro_batches_and_remembers_images(make_batch):
    meter = Meter()
    for share in (0.5, 0.25):
        meter.add(make_batch(0), torch.tensor(share))
    assert meter.step_has_images
    assert meter.end_step().item() == 0.75
    assert not meter.step_has_images
