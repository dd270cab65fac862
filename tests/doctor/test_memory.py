"""The doctor predicts a step's memory for a card that is not here."""

import pytest

from harness.doctor import memory
from harness.doctor.card import usable_gib
from harness.errors import UserError

DIGITS = ("data=digits", "data.train_rows=24", "memory=auto", "trainer.batch_size=4")


def test_a_table_for_a_named_card(make_config, capsys):
    found = memory.measure(make_config(*DIGITS), [], "NVIDIA H100")
    assert found["room_gib"] == 79.0 and found["failure"] is None
    assert "trainer.batch_size=4 trainer.accumulate=1 memory.checkpointing=none" in found["chosen"]
    (chosen,) = [row for row in found["rows"] if row["chosen"]]
    assert chosen["peak_gib"] == pytest.approx(sum(chosen["parts_gib"].values()))
    memory.show(found)
    out = capsys.readouterr().out
    assert "memory of a step, GiB: 79.0 to be had" in out and "4 x 1" in out and "chosen" in out


def test_the_budget_is_room_too_and_too_little_is_a_failure(make_config):
    found = memory.measure(make_config(*DIGITS, "memory.budget_gib=0.4"), [], None)
    assert found["room_gib"] == 0.4 and "there are 0.4; nothing near it fits" in found["failure"]


def test_a_policy_by_hand_is_held_against_the_card(make_config):
    config = make_config("data=digits", "data.train_rows=24", "memory.checkpointing=full")
    found = memory.measure(config, [{"free_gib": 9.0}], None)
    assert [row["policy"] for row in found["rows"]] == ["full"] and found["chosen"] is None


def test_without_a_gpu_nothing_is_predicted(make_config):
    assert memory.measure(make_config(*DIGITS), [], None) is None


def test_what_can_not_be_predicted_is_said(make_config, capsys):
    memory.show(memory.measure(make_config(*DIGITS, "tuner=boft"), [], "24"))
    assert "memory is not predicted: tuner=boft" in capsys.readouterr().out


def test_an_unknown_card_is_refused():
    assert usable_gib("24") == 24.0
    with pytest.raises(UserError, match=r"--card h9: known: b200, h200, .*or its GiB as a number"):
        usable_gib("h9")
