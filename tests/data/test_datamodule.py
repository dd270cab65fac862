import logging
from types import SimpleNamespace

import pytest

from harness.data.config import GenerationConfig, Truncation
from harness.data.datamodule import DataModule
from harness.data.digits import DigitsConfig, build
from harness.data.encoding import Encoder
from harness.data.row import Sources
from harness.errors import UserError


@pytest.fixture
def rows(make_row):
    return [make_row(("user", "word " * (i % 5)), ("assistant", str(i)), origin=f"f:{i}") for i in range(23)]


def _module(sources, encoder, **changes):
    settings = {"seed": 1, "batch_size": 2, "accumulate": 2, "val_batch_size": 4, "workers": 0, "shuffle": True}
    return DataModule(sources, encoder, **(settings | {"generation": GenerationConfig()} | changes))


@pytest.fixture
def module(rows, encoder):
    module = _module(Sources(rows, rows, "0"), encoder, generation=GenerationConfig(enabled=True, max_samples=10))
    module.prepare()
    return module


def test_prepare_counts_digits_in_one_line(encoder, caplog):
    caplog.set_level(logging.INFO, "harness.data.datamodule")
    module = _module(build(DigitsConfig()), encoder)
    module.prepare()
    module.prepare()
    assert [record.getMessage() for record in caplog.records] == [
        "train: 1,437 rows, 0 dropped (over max_length), 33,051 tokens, 5,748 visual, 2,874 supervised",
        "val: 360 rows, 0 dropped (over max_length), 8,280 tokens, 1,440 visual, 720 supervised",
    ]


def test_dropped_and_truncated_rows_are_counted(rows, tokenizer, image_processor, make_row, caplog):
    caplog.set_level(logging.INFO, "harness.data.datamodule")
    long = make_row(("user", "word " * 50), ("assistant", "x"), origin="f:long")
    pictured = make_row(("user", (256, 256)), ("assistant", "x"), origin="f:pictured")
    for truncation in (Truncation.delete, Truncation.left):
        encoder = Encoder(tokenizer, image_processor, max_length=40, truncation=truncation)
        module = _module(Sources([*rows, long, pictured], [], "0"), encoder)
        module.prepare()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("train: 23 rows, 2 dropped (over max_length; first: f:long), ")
    message = "train: 24 rows, 1 dropped (with images alone over max_length; first: f:pictured), 1 truncated, "
    assert lines[1].startswith(message)


def test_nothing_left_and_nothing_to_generate(rows, tokenizer, image_processor, encoder):
    with pytest.raises(UserError, match=r"no train row is left of 23: 23 dropped \(over max_length; first: f:0\)"):
        _module(Sources(rows, [], "0"), Encoder(tokenizer, image_processor, max_length=2)).prepare()
    with pytest.raises(UserError, match=r"data\.generation\.enabled=true: there are no validation rows"):
        _module(Sources(rows, [], "0"), encoder, generation=GenerationConfig(enabled=True)).prepare()


def test_training_starts_at_its_step_and_takes_rank_from_the_trainer(module):
    def batches(rank, start):
        module.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        module.start_step, module.total_steps = start, 4
        return [batch.origins for batch in module.train_dataloader()]

    assert module.take_wait_seconds() == 0
    assert len(batches(0, 0)) == 8
    assert module.take_wait_seconds() > 0
    assert batches(1, 3) == batches(1, 0)[6:]
    seen = [origin for rank in (0, 1) for origins in batches(rank, 0)[:5] for origin in origins]
    assert len(set(seen)) == len(seen) == 20


def test_steps_per_epoch_cover_every_row(module):
    assert module.steps_per_epoch(1) == 6
    assert module.steps_per_epoch(2) == 3
    assert module.steps_per_epoch(100) == 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_validation_sees_each_row_once_longest_first(module, world_size):
    shares = [list(module.val_batches(rank, world_size)) for rank in range(world_size)]
    seen = [origin for share in shares for batch in share for origin in batch.origins]
    assert sorted(seen) == sorted(f"f:{i}" for i in range(23))
    assert all(batch.num_samples <= 4 for share in shares for batch in share)
    lengths = [batch.input_ids.shape[1] for batch in shares[0]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(len(sample.ids) for sample in module.val_samples)
    counts = {len(share) for share in shares}
    assert counts == ({0, 1} if world_size == 30 else counts) and (world_size == 30 or len(counts) == 1)


def test_prompts_are_those_of_the_first_validation_rows(module):
    batches = [batch for rank in (0, 1) for batch in module.prompt_batches(rank, 2)]
    found = {row: answer for batch in batches for row, answer in zip(batch.rows, batch.references, strict=True)}
    assert found == {row: str(row) for row in range(10)}


def test_without_generation_or_validation_there_is_nothing_to_yield(rows, encoder):
    module = _module(Sources(rows, [], "0"), encoder)
    module.prepare()
    assert list(module.prompt_batches(0, 1)) == [] and list(module.val_batches(0, 1)) == []
