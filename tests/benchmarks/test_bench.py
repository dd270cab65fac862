"""The scripts behind docs/performance.md, on results made up here, and the ratio to stock transformers + PEFT."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import bench
import cpu_bench
import gpu_watch
import performance_tables
import pytest
import torch

from harness.compose import compose_config
from harness.config import to_run_config

ROOT = Path(__file__).parents[2]
WORKLOADS = bench.BENCH["workloads"]
GIT = {"commit": "0123456789abcdef", "dirty": True}


def test_clock_and_power_are_those_under_load(tmp_path, monkeypatch):
    lines = ["345, 80.2, 1980", "1500, 690.0, 1980", "1400, 695.5, 1980", "1450, 700, 1980", "[N/A], 1, 2", ""]
    assert gpu_watch.under_load(lines) == {"sm_clock_mhz": 1450, "power_w": 695.5, "max_sm_clock_mhz": 1980}
    assert gpu_watch.under_load([]) == {}
    monkeypatch.setattr(gpu_watch, "_QUERY", ["no-such-program"])
    with gpu_watch.watched(tmp_path / "samples.csv"):
        pass


def rows(speeds):
    """A window of five steps each, as metrics.jsonl has them."""
    for number, speed in enumerate(speeds, 1):
        yield {"step": 5 * number - 1, "train/loss": 1.0}
        yield {
            "step": 5 * number,
            **{f"perf/{name}_per_s": speed for name in ("tokens", "supervised_tokens", "samples")},
            "perf/mfu": speed / 1e5,
            "perf/mfu_of_measured_peak": speed / 8e4,
            "perf/data_wait_fraction": 0.001,
        }


def outcome(status="completed", error=None, device="NVIDIA H200"):
    summary = {"train_loss": 6.2, "peak_allocated_gib": 61.94, "startup_time_s": 17.4}
    environment = {"git": GIT, "packages": {"torch": "2.11.0"}, "python": "3.12.1", "device": {"name": device}}
    if device is None:
        environment = {}
    return SimpleNamespace(status=status, error=error, summary=summary, environment=environment)


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "performance.md").write_text("a\n<!-- gpu -->\nstale\n<!-- end -->\nb\n<!-- cpu -->\n<!-- end -->\nc\n")
    return tmp_path


def test_a_workload_is_the_median_over_windows_behind_the_warm_up():
    found = bench.figures(list(rows([1.0, 2.0, 1000.0, 1010.0, 1200.0, 1005.0])))
    assert (found["tokens_per_s"], found["tokens_per_s_min"], found["tokens_per_s_max"]) == (1007.5, 1000.0, 1200.0)
    assert found["mfu"] == pytest.approx(0.010075) and found["windows"] == 4
    assert bench.figures([{"step": 3, "train/loss": 1.0}]) == {}


def test_results_of_a_card_are_kept_and_rendered(docs):
    found = bench.entry("4b_lora", bench.overrides("4b_lora"), outcome(), list(rows([1.0, 1.0, 26000.0])))
    bench.keep(found | {"tokens_per_s": 1.0}, docs / "results", "performance")
    bench.keep(found, docs / "results", "performance")
    failed = outcome("out_of_memory", "OutOfMemoryError: CUDA | out\nmore")
    bench.keep(bench.entry("8b_lora", bench.overrides("8b_lora"), failed, []), docs / "results", "performance")
    bench.keep(bench.entry("2b_lora", [], outcome("failed", "no", None), []), docs / "results", "performance")
    assert [path.name for path in (docs / "results").iterdir()] == ["performance_h200.json"]
    performance_tables.render(bench.BENCH, docs)
    text = (docs / "performance.md").read_text()
    row = "26,000 | 26,000 to 26,000 | 26.0 % | 32.5 % | 26,000 | 26,000.0 | 61.9 | 0.1 % |  | 17.4 | 26,000 | 11,100 |"
    assert f"| 4B, LoRA r8, ViT each step | {row}" in text
    assert "out_of_memory: OutOfMemoryError: CUDA / out" in text
    assert "### NVIDIA H200\n" in text and "Commit 0123456789ab and changes, torch 2.11.0, python 3.12.1." in text
    assert f"    python -m harness {' '.join(bench.overrides('4b_lora'))}\n" in text
    assert "stale" not in text and text.startswith("a\n") and text.endswith("Not measured.\n<!-- end -->\nc\n")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_cpu_table_shows_ratios(docs):
    made = {"key": "packed", "ratio": 1.5, "ratio_min": 1.4, "ratio_max": 1.6, "tokens": 500.0}
    made |= {"step_time_s": 0.05, "stock_step_time_s": 0.075}
    packages = dict.fromkeys(("torch", "transformers", "peft"), "1.0")
    made["environment"] = {"packages": packages, "git": GIT, "device": {"name": "a CPU"}}
    (docs / "results/performance_cpu.json").write_text(json.dumps([made]))
    performance_tables.render(bench.BENCH, docs)
    text = (docs / "performance.md").read_text()
    assert "| packed | 1.50 | 1.40 to 1.60 | 50 | 75 | 500 |" in text and "One thread of a CPU; torch 1.0" in text


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_compose_and_name_what_prepare_makes(name):
    workload = WORKLOADS[name]
    assert workload["shape"] in bench.BENCH["shapes"] and workload.get("data", "captions") in bench.BENCH["data"]
    config = to_run_config(compose_config(bench.overrides(name)))
    assert config.trainer.max_steps == 40 and config.trainer.log_every_steps == 5 and not config.trainer.checkpoints


def test_the_page_has_the_places_and_what_is_rendered(tmp_path):
    """docs/performance.md is what its results give."""
    page = ROOT / "docs" / "performance.md"
    (tmp_path / "performance.md").write_text(page.read_text())
    (tmp_path / "results").symlink_to(page.parent / "results")
    performance_tables.render(bench.BENCH, tmp_path)
    assert (tmp_path / "performance.md").read_text() == page.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_packed_step_is_faster_than_stock_transformers_and_peft():
    """Measured 2.3 times as fast in rows of 1,024 tokens (docs/performance.md); a busy machine takes a part of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = cpu_bench.measure(cpu_bench.WORKLOADS["digits packed to 1024"], windows=5, steps=3)
    finally:
        torch.set_num_threads(threads)
    assert found["ratio"] > 1.5
