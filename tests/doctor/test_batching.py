import numpy as np
import pytest

from harness.data.assemble import data_module
from harness.doctor import batching

LENGTHS = [10, 50, 20, 60, 30, 70, 40, 80]


@pytest.fixture
def measured(read_splits, write_rows):
    """Measures the batches of text rows of the given numbers of words under some overrides."""

    def make(words: list[int], *overrides: str):
        rows = [{"query": "hi", "response": "word " * number} for number in words]
        config, (train, *_) = read_splits(f"data.train={write_rows(*rows)}", *overrides)
        return config, train, batching.measure(train, config)

    return make


def row_of(found: dict, layout: str) -> dict:
    (row,) = [row for row in found["layouts"] if row["layout"] == layout]
    return row


def chosen(found: dict) -> list[str]:
    return [row["layout"] for row in found["layouts"] if row["set"]]


def test_equal_lengths_need_no_padding(measured):
    _, train, found = measured([20] * 6, "trainer.batch_size=2")
    assert row_of(found, "padded, 2 a batch")["filled"] == 1.0
    assert row_of(found, "padded, 2 a batch")["batches"] == 3
    total = int(train.samples.lengths.sum())
    assert row_of(found, "packed to 4,096") == {
        "layout": "packed to 4,096", "batches": 1, "left_out": 0, "filled": total / 4096, "set": False,
    }  # fmt: skip
    assert chosen(found) == ["padded, 2 a batch"]


def test_padding_is_counted_to_the_longest_of_each_batch(measured):
    _, train, found = measured(LENGTHS, "trainer.batch_size=8")
    lengths = train.samples.lengths
    assert row_of(found, "padded, 8 a batch")["filled"] == pytest.approx(lengths.sum() / (8 * lengths.max()))


def test_grouping_by_length_fills_better_and_sorts_exactly(measured):
    _, train, found = measured(LENGTHS * 4, "trainer.batch_size=4", "data.group_by_length=true")
    lengths = np.sort(train.samples.lengths).reshape(-1, 4)
    grouped = row_of(found, "padded, 4 a batch, like lengths together")
    assert grouped["filled"] == pytest.approx(lengths.sum() / (4 * lengths.max(axis=1)).sum())
    assert grouped["filled"] > row_of(found, "padded, 4 a batch")["filled"]
    assert chosen(found) == ["padded, 4 a batch, like lengths together"]


def test_set_packing_length_is_listed_with_the_samples_of_a_pack_as_batch(measured):
    packing = ("data.packing=true", "data.packing_length=512", "trainer.batch_size=1")
    _, train, found = measured(LENGTHS, *packing)
    assert [row["layout"] for row in found["layouts"]][2:] == [
        "packed to 512", "packed to 4,096", "packed to 8,192", "packed to 16,384",
    ]  # fmt: skip
    packs = row_of(found, "packed to 512")
    assert packs["filled"] == pytest.approx(train.samples.lengths.sum() / (512 * packs["batches"]))
    assert found["layouts"][0]["layout"] == f"padded, {round(8 / packs['batches'])} a batch"
    assert chosen(found) == ["packed to 512"]


def test_samples_that_a_pack_can_not_hold_are_counted(measured, capsys):
    _, _, found = measured([10, 10, 5000], "data.max_length=20000")
    assert [row["left_out"] for row in found["layouts"]] == [0, 0, 1, 0, 0]
    batching.show(found)
    line = next(line for line in capsys.readouterr().out.splitlines() if "packed to 4,096" in line)
    assert line.split()[-4:-2] == ["1", "1"]


def test_token_budget_and_padding_free(measured):
    budget = ("data.max_tokens_per_batch=256", "trainer.batch_size=1")
    _, train, found = measured(LENGTHS, *budget)
    lengths = np.sort(train.samples.lengths)[::-1]
    padded = row_of(found, "batches of 256 tokens")
    assert chosen(found) == ["batches of 256 tokens"] and 0.5 < padded["filled"] < 1
    _, _, joined = measured(LENGTHS, *budget, "data.padding_free=true")
    assert chosen(joined) == ["batches of 256 tokens, padding-free"]
    assert row_of(joined, "batches of 256 tokens, padding-free")["filled"] == 1.0
    assert row_of(joined, "batches of 256 tokens, padding-free")["batches"] >= lengths.sum() / 256
    _, _, free = measured(LENGTHS, "data.padding_free=true", "trainer.batch_size=4")
    assert chosen(free) == ["padding-free, 4 a batch"] and row_of(free, "padding-free, 4 a batch")["filled"] == 1.0


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.batch_size=3", "trainer.accumulate=2"),
        ("trainer.batch_size=1", "data.packing=true", "data.packing_length=200"),
        ("trainer.batch_size=1", "data.max_tokens_per_batch=200"),
        ("trainer.batch_size=1", "data.max_tokens_per_batch=200", "data.padding_free=true"),
        ("trainer.batch_size=2", "trainer.devices=2", "data.group_by_length=true"),
    ],
)
def test_steps_of_an_epoch_are_those_of_training(measured, processor, overrides):
    config, _, found = measured(LENGTHS * 3, *overrides)
    module = data_module(config, processor)
    module.prepare()
    assert found["steps_per_epoch"] == module.steps(1, config.trainer.devices)


def test_stream_has_no_epochs(measured, capsys):
    _, _, found = measured(LENGTHS, "data.streaming=true", "trainer.max_steps=1")
    assert found["steps_per_epoch"] is None
    batching.show(found)
    assert "a stream has no epochs" in capsys.readouterr().out
