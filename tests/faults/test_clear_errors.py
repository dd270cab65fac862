"""Likely mistakes, typed as a user types them."""

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def test_each_ends_in_one_clear_line_before_weights_are_loaded(scripts):
    figures = scripts("clear_errors").measure("", repeat=1)
    assert figures["tried"] == 20 and figures["wrong"] == []


def test_what_is_no_mistake_is_not_called_one(scripts, monkeypatch):
    """The judgement itself: a command that trains, and one whose message lacks the words."""
    errors = scripts("clear_errors")
    right = "data=files data.train=train.jsonl data.generation.enabled=false trainer.max_steps=1 data.workers=0"
    monkeypatch.setattr(errors, "MISTAKES", {right: "", "tuner.rnak=8": "other words"})
    found = errors.measure("", repeat=1)["wrong"]
    assert [item["command"] for item in found] == [right, "tuner.rnak=8"]
    assert found[0]["loaded"] == ["safetensors", "torch", "transformers"] and found[1]["loaded"] == []
