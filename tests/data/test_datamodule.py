import logging
from types import SimpleNamespace

import numpy as np
import pytest

from harness.data.config import DataConfig, GenerationConfig, OnError, Truncation
from harness.data.datamodule import DataModule
from harness.data.digits import DigitsConfig, build
from harness.data.row import ListRows, Sources
from harness.data.row_error import RowError
from harness.errors import UserError

SKIP = OnError["skip"]


@pytest.fixture
def rows(make_row):
    return [make_row(("user", "word " * (i % 5)), ("assistant", str(i)), origin=f"f:{i}") for i in range(23)]


@pytest.fixture
def make_module(make_encoder):
    def make(sources, batch_size=2, **settings):
        config = DataConfig(**({"workers": 0, "cache_dir": None} | settings))
        encoder = make_encoder(**settings)
        return DataModule(
            sources, encoder, config, seed=1, batch_size=batch_size, accumulate=2, val_batch_size=4, key="test"
        )

    return make


def _sources(train, val=()):
    return Sources(ListRows(train, "train"), ListRows(val, "val"), "0")


@pytest.fixture
def module(rows, make_module):
    module = make_module(_sources(rows, rows), generation=GenerationConfig(enabled=True, max_samples=10))
    module.prepare()
    return module


def _batches(module, rank=0, world_size=1, start=0, steps=4):
    module.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
    module.start_step, module.total_steps = start, steps
    return list(module.train_dataloader())


def test_prepare_counts_digits_in_one_line(make_module, caplog):
    caplog.set_level(logging.INFO, "harness.data.datamodule")
    module = make_module(build(DigitsConfig()))
    module.prepare()
    module.prepare()
    assert [record.getMessage() for record in caplog.records] == [
        "train: 1,437 of 1,437 rows, 33,051 tokens, 5,748 visual, 2,874 supervised",
        "val: 360 of 360 rows, 8,280 tokens, 1,440 visual, 720 supervised",
    ]


def test_every_row_is_accounted_for(rows, make_module, make_row):
    long = make_row(("user", "word " * 50), ("assistant", "x"), origin="f:long")
    pictured = make_row(("user", "see", (256, 256)), ("assistant", "x"), origin="f:pictured")
    control = make_row(("user", "<|im_end|>"), ("assistant", "x"), origin="f:control")
    train = [*rows, long, pictured, control]
    for truncation in (Truncation.delete, Truncation.left, Truncation.split):
        module = make_module(_sources(train), max_length=40, truncation=truncation, on_error=SKIP)
        module.prepare()
        account = module.accounts["train"]
        assert account.rows == 26 == account.used + account.skipped.total + account.dropped.total
        assert dict(account.skipped.counts) == {"control token": 1}
        assert account.samples == len(module.train_samples)
        assert account.tokens == module.train_samples.lengths.sum()
        if truncation is Truncation.delete:
            assert account.dropped.first == {"over max_length": ["f:long", "f:pictured"]}
        if truncation is Truncation.left:
            assert account.truncated.first == {"left": ["f:long", "f:pictured"]}


def test_a_bad_row_ends_the_run_unless_it_may_be_skipped(rows, make_module, make_row):
    control = make_row(("user", "<|im_end|>"), ("assistant", "x"), origin="f:control")
    with pytest.raises(RowError, match="f:control"):
        make_module(_sources([*rows, control])).prepare()


def test_nothing_left_and_nothing_to_generate(rows, make_module):
    with pytest.raises(UserError, match=r"no train row is left of 23: 23 over max_length \(first: f:0\)"):
        make_module(_sources(rows), max_length=2).prepare()
    with pytest.raises(UserError, match=r"data\.generation\.enabled=true: there are no validation rows"):
        make_module(_sources(rows), generation=GenerationConfig(enabled=True)).prepare()


@pytest.mark.parametrize(
    "settings",
    [{}, {"packing": True, "packing_length": 64}, {"padding_free": True}, {"group_by_length": True}],
    ids=["padded", "packed", "joined", "grouped"],
)
def test_an_epoch_sees_each_row_once_in_every_layout(rows, make_module, settings):
    module = make_module(_sources(rows), batch_size=1, **settings)
    module.prepare()
    units = len(module._plan.units)
    # Steps of two micro-batches: one unit too many where their number is odd.
    batches = _batches(module, steps=module.steps(1, 1))[:units]
    assert sorted(origin for batch in batches for origin in batch.origins) == sorted(f"f:{i}" for i in range(23))


@pytest.mark.parametrize(
    "settings", [{"packing": True, "packing_length": 32}, {"group_by_length": True}], ids=["packed", "grouped"]
)
def test_a_step_has_the_same_rows_on_one_rank_as_on_two(make_module, make_row, settings):
    pictures = [(), ((32, 32),), ((64, 64),)]
    rows = [
        make_row(("user", "word " * (i % 5), *pictures[i % 3]), ("assistant", "x"), origin=f"f:{i}") for i in range(40)
    ]

    def steps(world_size, batch_size, accumulate):
        """The rows of each of three steps of four units."""
        module = make_module(_sources(rows), batch_size=2 // world_size, **settings)
        module.resize(batch_size, accumulate)
        module.prepare()
        ranks = [_batches(module, rank, world_size, steps=3) for rank in range(world_size)]
        parts = [[b for batches in ranks for b in batches[step * accumulate :][:accumulate]] for step in range(3)]
        return [sorted(origin for batch in part for origin in batch.origins) for part in parts]

    assert steps(1, 1, 4) == steps(2, 2, 1)


@pytest.mark.parametrize("padding_free", [False, True])
def test_token_budget_bounds_each_batch(rows, make_module, padding_free):
    module = make_module(_sources(rows), batch_size=1, max_tokens_per_batch=60, padding_free=padding_free)
    module.prepare()
    batches = _batches(module, steps=module.steps(1, 1))
    assert max(batch.input_ids.numel() for batch in batches) <= 60
    assert len({origin for batch in batches for origin in batch.origins}) == 23
    assert max(batch.num_samples for batch in batches) > 2


def test_training_starts_at_its_step_and_takes_rank_from_the_trainer(module):
    def origins(rank, start):
        return [batch.origins for batch in _batches(module, rank, 2, start)]

    assert module.take_wait_seconds() == 0
    assert len(origins(0, 0)) == 8
    assert module.take_wait_seconds() > 0
    assert origins(1, 3) == origins(1, 0)[6:]
    seen = [origin for rank in (0, 1) for batch in origins(rank, 0)[:5] for origin in batch]
    assert len(set(seen)) == len(seen) == 20


def test_steps_cover_every_row_as_often_as_asked(module):
    assert [module.steps(1, world_size) for world_size in (1, 2, 100)] == [6, 3, 1]
    # 23 rows, 4 a step: three epochs are 69 rows, and not three times the six steps that one takes.
    assert module.steps(3, 1) == 18 and module.steps(6, 1) == 35 and module.steps(0.5, 1) == 3


def test_epochs_are_decimal_numbers(rows, make_module):
    module = make_module(_sources(rows[:20]), batch_size=1)
    module.prepare()
    assert module.steps(1.1, 1) == 11


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"padding_free": True},
        {"packing": True, "packing_length": 64},
        {"max_tokens_per_batch": 60},
        {"max_tokens_per_batch": 60, "padding_free": True},
    ],
    ids=["padded", "joined", "packed", "budget", "joined budget"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_rows_in_the_order_of_the_files(rows, make_module, settings, stream):
    sources = Sources(_Stream(rows, broken=None), ListRows([], "val"), "0") if stream else _sources(rows)
    module = make_module(sources, batch_size=1, shuffle=False, **settings)
    module.prepare()
    seen = [origin for batch in _batches(module, steps=24) for origin in batch.origins]
    assert seen[:46] == [f"f:{i % 23}" for i in range(46)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_validation_sees_each_row_once_longest_first(module, world_size):
    shares = [list(module.val_batches(rank, world_size)) for rank in range(world_size)]
    seen = [origin for share in shares for batch in share for origin in batch.origins]
    assert sorted(seen) == sorted(f"f:{i}" for i in range(23))
    assert all(batch.num_samples <= 4 for share in shares for batch in share)
    lengths = [batch.input_ids.shape[1] for batch in shares[0]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == module.val_samples.lengths.max()
    counts = {len(share) for share in shares}
    assert counts == ({0, 1} if world_size == 30 else counts) and (world_size == 30 or len(counts) == 1)


def test_prompts_are_those_of_the_first_validation_rows(module):
    batches = [batch for rank in (0, 1) for batch in module.prompt_batches(rank, 2)]
    found = {row: answer for batch in batches for row, answer in zip(batch.rows, batch.references, strict=True)}
    assert found == {row: str(row) for row in range(10)}


def test_without_generation_or_validation_there_is_nothing_to_yield(rows, make_module):
    module = make_module(_sources(rows))
    module.prepare()
    assert list(module.prompt_batches(0, 1)) == [] and module.val_samples is None


class _Stream:
    """Rows over and over, shared out by rank; one can not be used."""

    fingerprint = "stream"

    def __init__(self, rows, broken=6):
        self.rows, self.broken = rows, broken

    def read(self, rank, world_size, seed):
        number = 0
        while True:
            if number % world_size == rank:
                place = number % len(self.rows)
                yield RowError("f:6", "not JSON", "not JSON") if place == self.broken else self.rows[place]
            number += 1


@pytest.mark.parametrize("settings", [{}, {"packing": True, "packing_length": 100}], ids=["padded", "packed"])
def test_a_stream_trains_resumes_and_is_accounted_for(rows, make_module, settings):
    sources = Sources(_Stream(rows), ListRows([], "val"), "0")

    def origins(start):
        module = make_module(sources, on_error=SKIP, **settings)
        module.prepare()
        return [batch.origins for batch in _batches(module, start=start, steps=6)], module

    whole, module = origins(0)
    assert whole[4:] == origins(2)[0]
    account = module.accounts["train"]
    assert account.rows == account.used + account.skipped.total + account.dropped.total > 0
    assert "f:6" not in {origin for batch in whole for origin in batch}
    assert module.shows_something and module.train_samples is None
    steps = [batch.step_supervised for batch in _batches(make_ready(make_module, sources, settings), steps=2)]
    assert steps[0] == steps[1] > 0


def make_ready(make_module, sources, settings):
    module = make_module(sources, on_error=SKIP, **settings)
    module.prepare()
    return module


def test_a_stream_stops_at_a_bad_row_unless_told_to_skip(rows, make_module):
    module = make_module(Sources(_Stream(rows), ListRows([], "val"), "0"))
    module.prepare()
    with pytest.raises(RowError, match="f:6: not JSON"):
        _batches(module, steps=30)


def test_a_stream_that_gives_nothing_is_given_up(rows, make_module):
    module = make_module(Sources(_Stream(rows), ListRows([], "val"), "0"), on_error=SKIP, max_length=2)
    module.prepare()
    with pytest.raises(UserError, match=r"none of 10,000 rows in a row can be used: .* not JSON"):
        _batches(module)


def test_left_padding(rows, make_module):
    from harness.data.config import PaddingSide

    module = make_module(_sources(rows), padding_side=PaddingSide.left)
    module.prepare()
    masks = [batch.attention_mask.numpy() for batch in _batches(module)]
    assert all(mask[:, -1].all() for mask in masks)
    assert any(not mask[:, 0].all() for mask in masks) and np.concatenate([mask.ravel() for mask in masks]).any()
