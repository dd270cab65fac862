import pytest

from harness.data.row_error import RowError
from harness.doctor import split
from harness.errors import UserError


def test_every_bad_row_is_counted_though_training_would_end_at_the_first(read_splits, write_rows, row):
    path = write_rows(row(), "{", row("a", "gone.png"), row("b", "lost.png"), {"messages": []})
    _, (train,) = read_splits(f"data.train={path}", "data.on_error=raise")
    skipped = train.account.skipped
    assert skipped.counts == {"missing image": 2, "not JSON": 1, "no messages": 1}
    assert train.account.rows == 5 == train.account.used + skipped.total
    assert "train.jsonl:3: image 'gone.png'" in skipped.first["missing image"][0]


def test_truncation_raise_does_not_end_the_look(read_splits, write_rows, row):
    path = write_rows(row(), row("word " * 100), row("word " * 90))
    config, (train,) = read_splits(f"data.train={path}", "data.max_length=50", "data.truncation=raise")
    assert config.data.truncation.name == "raise"
    assert train.account.dropped.counts == {"over max_length": 2}
    assert len(train.whole_lengths) == 3 and train.whole_lengths.max() > 50 >= train.samples.lengths.max()


def test_split_of_nothing_but_bad_rows_is_there_and_empty(read_splits, write_rows, row):
    _, (train,) = read_splits(f"data.train={write_rows('{', '}')}")
    assert len(train.samples) == 0 and train.account.used == 0 and train.account.skipped.total == 2


def test_validation_is_a_split_of_its_own_only_where_there_is_any(read_splits, write_rows, row):
    train, val = write_rows(row(), row("b")), write_rows(row("c"), name="val.jsonl")
    assert [found.name for found in read_splits(f"data.train={train}")[1]] == ["train"]
    assert [found.name for found in read_splits(f"data.train={train}", f"data.val={val}")[1]] == ["train", "val"]


def test_tokens_are_kept_where_training_looks_for_them(make_config, processor, write_rows, row, tmp_path, monkeypatch):
    from harness.data.assemble import data_module
    from harness.data.index import build

    monkeypatch.setattr(build, "CHUNK", 2)
    config = make_config(
        "data=files", f"data.train={write_rows(row(), row('b'), row('c'))}", f"data.cache_dir={tmp_path}"
    )
    split.read(config, processor)
    monkeypatch.setattr(build, "_build", lambda *_, **__: pytest.fail("tokenised again"))
    data_module(config, processor).prepare()


class TestStream:
    def test_each_row_counts_once_however_often_it_comes_up(self, read_splits, write_rows, row):
        path = write_rows(row(), "{", row("b"))
        _, (train,) = read_splits(f"data.train={path}", "data.streaming=true", "trainer.max_steps=9")
        assert train.streamed and train.account.rows == 3 and train.account.used == 2
        assert train.account.skipped.counts == {"not JSON": 1}

    def test_no_more_than_the_first_rows_are_read(self, read_splits, write_rows, row, monkeypatch):
        monkeypatch.setattr(split, "STREAM_ROWS", 4)
        path = write_rows(*(row(f"answer {number}") for number in range(10)))
        _, (train,) = read_splits(f"data.train={path}", "data.streaming=true", "trainer.max_steps=9")
        assert train.account.rows == 4

    def test_stream_without_a_usable_row_still_shows_why(self, read_splits, write_rows):
        _, (train,) = read_splits(f"data.train={write_rows('{', '}')}", "data.streaming=true", "trainer.max_steps=9")
        assert train.account.skipped.counts == {"not JSON": 2} and len(train.samples) == 0

    def test_error_before_the_first_row_is_passed_on(self):
        class Broken:
            fingerprint = ""

            def read(self, rank, world_size, seed):
                raise UserError("the hub can not be reached")
                yield

        with pytest.raises(UserError, match="the hub can not be reached"):
            split.first_rows(Broken(), 0)

    def test_bad_row_is_raised_when_it_is_asked_for(self):
        error = RowError("a:1", "not JSON", "not JSON")

        class Stream:
            fingerprint = "x"

            def read(self, rank, world_size, seed):
                yield error

        rows = split.first_rows(Stream(), 0)
        assert (len(rows), rows.origin(0), rows.fingerprint) == (1, "a:1", "x")
        with pytest.raises(RowError, match="a:1: not JSON"):
            rows[0]
