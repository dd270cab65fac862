"""The runs on several GPUs: valid command lines, and the same work on one GPU as on all of them."""

import multi_gpu
import pytest

from harness.compose import compose_config
from harness.config import to_run_config


@pytest.mark.parametrize("gpus", [2, 8])
def test_every_run_composes_and_has_the_global_batch_of_the_one_it_is_held_against(gpus):
    bench = multi_gpu.BENCH
    for load in bench["loads"]:
        rows = {}
        for run in multi_gpu.plan([load], gpus):
            config = to_run_config(compose_config(run.overrides()))
            assert config.trainer.world_size == (1 if run.is_single else gpus)
            rows[run.way] = config.trainer.batch_size * config.trainer.accumulate * config.data_ranks
        for way in bench["loads"][load]["strategies"]:
            assert rows[way] == rows[multi_gpu.ONE], (load, way)


def test_shared_sequences_show_their_measured_efficiency_alone():
    shared = {"load": "long", "gpus": 2, "status": "completed", "error": None, "step_time_s": 1.0, "losses": [1.0]}
    one = {**shared, "key": "long compiled 2", "way": "compiled", "tokens_per_s": 100.0, "peak_allocated_gib": 9.0}
    both = {**one, "key": "long ulysses 2", "way": "ulysses", "tokens_per_s": 180.0, "communication_ms": 2.0}
    both["step_time_s"] = 1 / 1.8
    entries = [{**entry, "total_parameters": 10, "trainable_parameters": 1} for entry in (one, both)]
    row = multi_gpu.render.__globals__["row"]
    cells = row(entries[1], {entry["key"]: entry for entry in entries})
    assert cells[3:7] == ["90", "100 *", "90.0 %", ""]


def test_a_row_is_held_against_one_gpu_of_its_own_machine_where_it_has_one():
    row = multi_gpu.render.__globals__["row"]
    one = {"key": "long compiled 2", "load": "long", "gpus": 2, "way": "compiled", "status": "completed"}
    one |= {"tokens_per_s": 100.0, "step_time_s": 1.0, "losses": [1.0], "peak_allocated_gib": 9.0}
    sizes = {"total_parameters": 10, "trainable_parameters": 1, "communication_ms": 2.0}
    both = {**one, **sizes, "way": "ulysses", "tokens_per_s": 180.0, "step_time_s": 0.5}
    slower = {"tokens_per_s": 80.0, "step_time_s": 0.8, "losses": [1.5]}
    assert row(both, {one["key"]: one})[4:6] == ["100 *", "100.0 %"]
    cells = row({**both, "one": slower}, {one["key"]: one})
    assert cells[4:6] == ["80", "80.0 %"] and cells[-1] == "0.5000"


def test_what_is_calculated_takes_the_measured_rate_of_as_many_gpus():
    table = multi_gpu.render.__globals__["table"]
    one = {"load": "4b_full", "gpus": 2, "status": "completed", "error": None, "losses": [1.0], "device": "NVIDIA X"}
    one |= {"total_parameters": 4e9, "trainable_parameters": 4e9, "peak_allocated_gib": 9.0, "versions": {"torch": "2"}}
    one |= {"key": "4b_full compiled 2", "way": "compiled", "tokens_per_s": 100.0, "step_time_s": 0.4}
    both = {**one, "key": "4b_full fsdp2 2", "way": "fsdp2", "communication_ms": None, "step_time_s": 0.25}
    links = {"gpus": 2, "bytes_per_s": {"1": {"all_gather": 1e9}, "1024": {"all_gather": 16e9}}}
    # (16 + 16) / 2 GB at 16 GB/s are a second, of which 0.9 of a step's 0.2 are hidden.
    shown = 1.0 + 108 * 10e-6 - 0.9 * 0.2
    assert f"| 80.0 % | {100 * 0.2 / (0.2 + shown):.1f} % |" in table(multi_gpu.BENCH, [one, both], [links])
    assert "| 80.0 % | 100.0 % |" in table(multi_gpu.BENCH, [one, both], [])
    assert "| 80.0 % | 100.0 % |" in table(multi_gpu.BENCH, [one, both], [{**links, "gpus": 4}])
