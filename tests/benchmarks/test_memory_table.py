"""The script behind the table of docs/memory.md, on results made up here."""

import json

import memory_table
import memory_tables
import pytest

from harness.compose import compose_config
from harness.config import to_run_config


def entry(key="4b tuner=lora", **changes):
    figures = {"predicted_gib": 10.5, "peak_allocated_gib": 10.0, "peak_reserved_gib": 11.0, "tokens_per_s": 20000.0}
    made = {"key": key, "status": "completed", "error": None, "device": "NVIDIA H200", "versions": {"torch": "2.11.0"}}
    return {**made, **figures, "step_ms": 400.0, "mfu": 0.45, **changes}


def test_every_configuration_is_a_valid_command_line_and_there_are_enough():
    chosen = memory_table.TABLE["configurations"]
    assert len(chosen) >= 24 and len({" ".join(c) for c in chosen}) == len(chosen)
    for configuration in chosen:
        for tiny in (False, True):
            to_run_config(compose_config(memory_table.overrides(configuration, tiny)))


def test_lines_become_results_and_a_table_where_the_later_counts(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "memory.md").write_text("a\n<!-- predicted -->\nstale\n<!-- end -->\nb\n")
    failed = entry("8b", status="failed", error="OutOfMemoryError: too much\nmore")
    shared = entry("2b", predicted_gib=10.1, **dict.fromkeys(memory_table.SPEEDS))
    lines = [
        entry(predicted_gib=99.0),
        entry(),
        failed,
        shared,
        entry("both"),
        {**shared, "key": "both"},
        entry("cpu", peak_allocated_gib=None),
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    memory_tables.render(tmp_path / "lines.jsonl", tmp_path)
    text = (tmp_path / "memory.md").read_text()
    assert "| `4b tuner=lora` | 10.5 | 10.0 | +5.0 % | 11.0 | 20,000 | 400 | 45.0 % |" in text
    assert "failed: OutOfMemoryError: too much |" in text and "stale" not in text and "`cpu`" not in text
    assert (
        "| `2b` | 10.1 | 10.0 | +1.0 % | 11.0 |  |  |  |" in text
        and "3 of 3 within 8 %; the largest error is 5.0 %." in text
    )
    assert json.loads((tmp_path / "results" / "memory_h200.json").read_text())[0]["predicted_gib"] == 10.5


@pytest.mark.gpu
def test_a_configuration_of_the_tiny_model_is_measured_on_a_gpu(tmp_path):
    memory_table.run(
        [["tiny", "tuner=lora", "memory.checkpointing=full"]], tmp_path / "lines.jsonl", 60, tiny=True, shared=False
    )
    (line,) = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
    assert line["error"] is None and line["peak_allocated_gib"] > 0 and line["marks_gib"]["forward"] > 0
