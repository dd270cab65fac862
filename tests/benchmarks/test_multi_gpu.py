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
            assert rows[way] == rows[bench["strategies"][way]["against"]], (load, way)


def test_shared_sequences_show_their_measured_efficiency_alone():
    shared = {"load": "long", "gpus": 2, "status": "completed", "error": None, "step_time_s": 1.0, "losses": [1.0]}
    one = {**shared, "key": "long compiled 2", "way": "compiled", "tokens_per_s": 100.0, "peak_allocated_gib": 9.0}
    both = {**one, "key": "long ulysses 2", "way": "ulysses", "tokens_per_s": 180.0, "communication_ms": 2.0}
    both["step_time_s"] = 1 / 1.8
    entries = [{**entry, "total_parameters": 10, "trainable_parameters": 1} for entry in (one, both)]
    row = multi_gpu.render.__globals__["row"]
    cells = row(multi_gpu.BENCH, entries[1], {entry["key"]: entry for entry in entries})
    assert cells[3:6] == ["90", "90.0 %", ""]
