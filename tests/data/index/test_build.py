import os
import pickle
from dataclasses import dataclass, fields

import numpy as np
import pytest

from harness.data.index import build as module
from harness.data.index.build import build
from harness.data.index.store import Arrays
from harness.data.media.image import ImageRef
from harness.data.row import Media, Message, Row
from harness.data.row_error import RowError


@dataclass(frozen=True)
class Numbered:
    """Rows made when they are asked for; each tenth can not be used, each third shows a picture."""

    size: int
    image: str
    broken: bool = True
    fingerprint: str = "numbered"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if self.broken and index % 10 == 9:
            raise RowError(self.origin(index), "not JSON", "not JSON")
        shows = index % 3 == 0
        parts = (Media.image, f"What is {index}?") if shows else (f"What is {index}?",)
        images = (ImageRef(self.image, self.origin(index)),) if shows else ()
        turns = (Message("user", parts), Message("assistant", ("x " * (index % 7),)))
        return Row(messages=turns, images=images, origin=self.origin(index))

    def origin(self, index):
        return f"f:{index}"


@pytest.fixture
def image(tmp_path, picture):
    picture(64, 64).save(tmp_path / "p.png")
    return str(tmp_path / "p.png")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 20)


def _build(rows, encoder, cache=None, **changes):
    settings = {"what": "train", "key": "k", "workers": 1, "stop": False}
    return build(rows, encoder.text, cache=cache, **(settings | changes))


def _same(left, right):
    assert {row: str(error) for row, error in left.errors.items()} == {
        row: str(error) for row, error in right.errors.items()
    }
    assert list(left.paths) == list(right.paths)
    for field in fields(Arrays):
        assert np.array_equal(getattr(left.arrays, field.name), getattr(right.arrays, field.name)), field.name


def _encodings(encoder, monkeypatch):
    """Counts rows that are tokenised from here on."""
    counted = []
    original = type(encoder.text).encode_many
    monkeypatch.setattr(
        type(encoder.text), "encode_many", lambda self, rows: (counted.extend(rows), original(self, rows))[1]
    )
    return counted


def test_chunks_join_to_what_one_piece_gives(encoder, image, tmp_path, monkeypatch):
    rows = Numbered(95, image)
    kept, mapped = _build(rows, encoder, tmp_path / "cache"), _build(rows, encoder)
    monkeypatch.setattr(module, "CHUNK", 1000)
    whole = _build(rows, encoder)
    _same(kept, whole)
    _same(mapped, whole)
    assert len(whole) == 95 and sorted(whole.errors) == list(range(9, 95, 10))
    for number in (0, 8, 9, 94):
        sample = whole[number]
        assert len(sample.ids) == (0 if number == 9 else len(encoder.text.encode_many([rows[number]])[0].ids))
        assert len(sample.media) == (number % 3 == 0 and number != 9)


def test_the_second_run_tokenises_nothing(encoder, image, tmp_path, monkeypatch):
    rows = Numbered(95, image, broken=False)
    first = _build(rows, encoder, tmp_path)
    counted = _encodings(encoder, monkeypatch)
    _same(_build(rows, encoder, tmp_path), first)
    assert counted == []
    _build(rows, encoder, tmp_path, key="other")
    assert len(counted) == 95
    _build(Numbered(95, image, broken=False, fingerprint="other"), encoder, tmp_path)
    assert len(counted) == 190


def test_an_interrupted_run_goes_on_where_it_stopped(encoder, image, tmp_path, monkeypatch):
    rows = Numbered(95, image, broken=False)
    original, done = module._keep, []

    def stop_at_third(part, chunk, stop):
        if len(done) == 2:
            raise KeyboardInterrupt
        original(part, chunk, stop)
        done.append(chunk)

    monkeypatch.setattr(module, "_keep", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        _build(rows, encoder, tmp_path)
    monkeypatch.setattr(module, "_keep", original)
    counted = _encodings(encoder, monkeypatch)
    found = _build(rows, encoder, tmp_path)
    assert [row.origin for row in counted] == [f"f:{number}" for number in range(40, 95)]
    monkeypatch.setattr(module, "CHUNK", 1000)
    _same(found, _build(rows, encoder))


def test_chunks_of_a_run_that_could_skip_do_not_excuse_bad_rows(encoder, image, tmp_path, monkeypatch):
    monkeypatch.setattr(module.store, "merge", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        _build(Numbered(95, image), encoder, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(module, "CHUNK", 20)
    with pytest.raises(RowError, match="f:9: not JSON"):
        _build(Numbered(95, image), encoder, tmp_path, stop=True)


def test_a_changed_picture_and_a_mended_row_are_seen(encoder, image, picture, tmp_path):
    cache = tmp_path / "cache"
    first = _build(Numbered(95, image), encoder, cache)
    assert first[0].media.tolist() == [[0, 64, 64]]
    picture(96, 32).save(image)
    assert _build(Numbered(95, image), encoder, cache)[0].media.tolist() == [[0, 32, 96]]
    mended = _build(Numbered(95, image, broken=False), encoder, cache)
    assert mended.errors == {} and len(mended[9].ids) > 0
    os.remove(image)
    gone = _build(Numbered(95, image), encoder, cache)
    assert gone.errors[0].reason == "missing image"


def test_processes_give_what_one_gives(encoder, image, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PARALLEL_FROM", 0)
    rows = Numbered(95, image)
    parallel = _build(rows, encoder, tmp_path / "a", workers=2)
    _same(parallel, _build(rows, encoder, tmp_path / "b"))
    with pytest.raises(RowError, match="f:9: not JSON"):
        _build(rows, encoder, tmp_path / "c", workers=2, stop=True)


def test_the_first_bad_row_ends_the_run(encoder, image, tmp_path):
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(RowError, match="f:9: not JSON"):
            _build(Numbered(95, image), encoder, cache, stop=True)


def test_what_travels_to_a_process_is_small(encoder, image):
    assert len(pickle.dumps((Numbered(10, image), encoder.text))) < 200_000
