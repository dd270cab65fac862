import pytest
import torch

from harness.trainer.flops import survey
from harness.trainer.host_sync import SyncCounter
from harness.trainer.meter import Meter, Totals
from harness.trainer.peak import Peaks


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


def test_use_is_flops_over_what_the_device_could_do():
    span = Totals(steps=2, seconds=2.0, needed_flops=400e12, done_flops=600e12)
    assert span.use(Peaks()) == {"perf/model_tflop_per_s": 200.0}
    assert span.use(Peaks(1000.0, 800.0)) == {
        "perf/model_tflop_per_s": 200.0,
        "perf/mfu": 0.2,
        "perf/hfu": 0.3,
        "perf/mfu_of_measured_peak": 0.25,
    }


def test_flops_of_all_micro_batches_are_counted(make_tuned, make_batch):
    costs, batch = survey(make_tuned("tuner=lora").base), make_batch(0, 1)
    meter = Meter(costs=costs)
    for _ in range(2):
        meter.add(batch, torch.tensor(1.0))
    meter.end_step()
    interval = meter.end_interval(0.0)
    assert (interval.needed_flops, interval.done_flops) == tuple(2 * flops for flops in costs.of(batch))


def test_a_resumed_process_warms_up_too_and_compilation_is_left_out(make_batch, monkeypatch):
    graphs = [0]
    monkeypatch.setattr("harness.trainer.meter._compiled_graphs", lambda: graphs[0])
    meter, batch = Meter(total=Totals(steps=100)), make_batch(0)
    for compiled in (1, 1, 1, 1, 2, 2):
        graphs[0] = compiled
        meter.add(batch, torch.tensor(1.0))
        meter.end_step()
        meter.end_interval(wait_seconds=0.0)
    assert (meter.total.steps, meter.steady.steps) == (106, 2)


def test_waits_for_the_gpu_are_counted_a_step():
    counter = SyncCounter()
    meter = Meter(syncs=counter)
    for _ in range(6):
        counter.see("here")
    assert meter.metrics(Totals(steps=3, seconds=1.0))["perf/host_syncs"] == 2.0
    assert "perf/host_syncs" not in Meter().metrics(Totals(steps=3, seconds=1.0))
