"""The calculated plan for several GPUs."""

import dataclasses
from pathlib import Path

import pytest
import scaling

LOAD = scaling.Load("x", 4_000_000_000, 4_000_000_000, 36, 0.5, 8000, 8.0, 16.0, 32.0, 4.0)


def test_an_all_reduce_sends_twice_what_a_gather_does():
    assert scaling.ring(8.0, 8) == 7.0
    said = scaling.talk("ddp", LOAD, 8)
    assert said.inside == 2 * 4 * LOAD.trained * 7 / 8 and said.between == 0


def test_slow_networks_carry_what_leaves_a_node_and_no_more():
    whole, hybrid = scaling.talk("fsdp2", LOAD, 64), scaling.talk("hybrid", LOAD, 64)
    assert whole.inside == 0 and whole.between == (4 + 4) * LOAD.parameters * 63 / 64
    assert hybrid.between == pytest.approx(2 * 4 * LOAD.trained / 8 * 7 / 8)


def test_talk_shows_only_beyond_what_the_backward_pass_hides():
    fast, slow = (dataclasses.replace(LOAD, compute_s=seconds) for seconds in (0.01, 100.0))
    said = scaling.talk("ddp", LOAD, 64)
    whole, shown = scaling.seconds(said, fast, 64)
    assert shown == pytest.approx(whole - 0.006)
    assert scaling.seconds(said, slow, 64)[1] == 0


def test_memory_by_strategy():
    held = {name: scaling.memory_gib(name, LOAD, 8) for name in ("ddp", "zero1", "zero2", "fsdp2")}
    assert held == {"ddp": 60, "zero1": 32, "zero2": 18, "fsdp2": pytest.approx(56 / 8 + 16 / 36 + 4)}


def test_fsdp2_keeps_adapters_whole():
    lora = dataclasses.replace(LOAD, trained=10_000_000, gradients_gib=0.04, state_gib=0.08)
    small = 4 * 10_000_000 / scaling.GIB
    expected = (8 - small) / 8 + 16 / 36 + small + 2 * 0.04 + 0.08 + 4
    assert scaling.memory_gib("fsdp2", lora, 8) == pytest.approx(expected)
    said, split = scaling.talk("fsdp2", lora, 8), scaling.talk("zero3", lora, 8)
    assert said.inside == 4 * lora.parameters * 7 / 8 and said.behind == 2 * 4 * lora.trained * 7 / 8
    assert split.inside == said.inside + said.behind / 2 and split.behind == 0
    # All of what goes behind the backward pass shows.
    slow = dataclasses.replace(lora, compute_s=100.0)
    assert scaling.seconds(said, slow, 8)[1] == said.behind / scaling.INSIDE


def test_the_page_is_what_the_results_give(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "scaling.md"
    (tmp_path / "scaling.md").write_text(page.read_text())
    (tmp_path / "results").symlink_to(page.parent / "results")
    scaling.main(tmp_path)
    assert (tmp_path / "scaling.md").read_text() == page.read_text()
