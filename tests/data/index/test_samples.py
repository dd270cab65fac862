from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from harness.data.account import Account
from harness.data.config import ImageConfig, Truncation
from harness.data.index import build as build_module
from harness.data.index.build import build
from harness.data.index.samples import index
from harness.data.row import ListRows, Message, Row
from harness.data.template.encoder import Dropped

SETTINGS = [
    {},
    {"max_length": 60},
    {"max_length": 60, "truncation": Truncation.left},
    {"max_length": 60, "truncation": Truncation.right},
    {"max_length": 40, "truncation": Truncation.split},
    {"image": ImageConfig(max_tokens=6)},
]


@pytest.fixture
def rows(make_row):
    sizes = [(64, 64), (200, 90), (33, 250), (256, 256), (16, 16)]
    made = []
    for number in range(24):
        shown = sizes[number % 5 :][: number % 4]
        turns = (("user", "look ", *shown, "word " * (number % 9)), ("assistant", "x " * (3 * number)))
        made.append(make_row(*turns, origin=f"f:{number}"))
    silent = (Message("user", ("Hi",)), Message("assistant", ("Yes",), 0.0))
    return ListRows([*made, Row(messages=silent, origin="f:24")], "rows")


def _index(rows, encoder):
    account = Account(len(rows))
    store = build(rows, encoder.text, what="train", key="k", cache=None, workers=1, stop=False)
    return index(rows, store, encoder, account), account


@pytest.mark.parametrize("settings", SETTINGS)
def test_lengths_and_samples_equal_those_of_rows_one_by_one(rows, make_encoder, settings):
    encoder = make_encoder(**settings)
    samples, account = _index(rows, encoder)
    expected, dropped = [], Counter()
    for row in rows.rows:
        encoded = encoder.encode(row)
        if isinstance(encoded, Dropped):
            dropped[encoded.reason] += 1
        else:
            expected += encoded
    assert account.dropped.counts == dropped
    assert len(samples) == len(expected) == account.samples
    assert account.used + account.dropped.total == len(rows)
    for number, sample in enumerate(expected):
        found = samples[number]
        assert found.origin == sample.origin and found.media == sample.media
        for name in ("ids", "spans", "weights", "grids", "sizes"):
            assert np.array_equal(getattr(found, name), getattr(sample, name)), name
        assert samples.lengths[number] == len(sample.ids)
        assert samples.supervised[number] == sample.num_supervised
        assert samples.visual[number] == sample.num_visual


def test_channels_are_kept_on_disk_apart_from_the_settings(make_row, make_encoder, tmp_path, monkeypatch):
    """Another `data.channels` needs no tokenising: the cache holds what a row says of itself."""
    monkeypatch.setattr(build_module, "CHUNK", 2)
    rows = [make_row(("user", "Hi"), ("assistant", "Yes"), origin=f"f:{n}") for n in range(5)]
    rows = ListRows(
        [replace(row, channel=name) for row, name in zip(rows, ["a", None, "b", "ä", "a"], strict=True)], "r"
    )
    for channels, expected in (([], [0] * 5), (["ä", "a"], [2, 0, 0, 1, 2])):
        encoder = make_encoder(channels=channels)
        store = build(rows, encoder.text, what="train", key="k", cache=tmp_path, workers=1, stop=False)
        samples = index(rows, store, encoder, Account(5))
        assert [samples[number].channel for number in range(5)] == expected
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_images_that_the_bounds_change_are_counted_by_row(rows, make_encoder):
    _, account = _index(rows, make_encoder(image=ImageConfig(min_tokens=2, max_tokens=6)))
    # 64 x 64 pixels are 4 tokens, 16 x 16 less than one, the others more than 6.
    shown = [{number % 5 + i for i in range(number % 4)} for number in range(24)]
    assert account.resized.counts["shrunk"] == sum(bool(kinds & {1, 2, 3}) for kinds in shown)
    assert account.resized.counts["enlarged"] == sum(bool(kinds & {4}) for kinds in shown)
    assert len(account.resized.first["shrunk"]) == 10


def test_silent_rows_are_dropped(rows, encoder):
    _, account = _index(rows, encoder)
    assert account.dropped.first == {"no supervised token": ["f:24"]}
