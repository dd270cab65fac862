import itertools
import json
import pickle
from collections import Counter
from random import Random

import numpy as np
import pytest

from harness.data.files import FilesConfig, build
from harness.data.row_error import RowError
from harness.data.source.selection import interleave
from harness.data.source.stream import interleaved, shuffled
from harness.errors import UserError


def lines(numbers):
    return "".join(json.dumps({"query": str(n), "response": "r"}) + "\n" for n in numbers)


@pytest.fixture
def stream(tmp_path):
    def make(train, **settings):
        config = FilesConfig(train=train, streaming=True, cache_dir=str(tmp_path / "cache"), **settings)
        return build(config).train

    return make


def texts(stream, count, rank=0, world_size=1, seed=0):
    rows = itertools.islice(stream.read(rank, world_size, seed), count)
    return [row.origin if isinstance(row, RowError) else row.messages[0].text for row in rows]


def epochs(found, size):
    return [found[at : at + size] for at in range(0, len(found), size)]


@pytest.mark.parametrize("buffer", [1, 4, 1000])
def test_three_ranks_share_each_epoch(put, stream, buffer):
    train = [put("a.jsonl", lines(range(7))), put("b.jsonl", lines(range(7, 20)))]
    found = stream(train, shuffle_buffer=buffer)
    shares = {0: 7, 1: 7, 2: 6}
    for epoch in range(3):
        seen = [epochs(texts(found, 21, rank, 3), size)[epoch] for rank, size in shares.items()]
        assert Counter(itertools.chain(*seen)) == Counter(map(str, range(20)))
        assert [set(map(int, share)) for share in seen] == [set(range(rank, 20, 3)) for rank in range(3)]


def test_the_order_is_drawn_from_seed_epoch_and_rank(put, stream):
    found = stream(put("a.jsonl", lines(range(40))), shuffle_buffer=10)
    first, second = epochs(texts(found, 80), 40)
    assert first != second and sorted(first) == sorted(second)
    assert texts(found, 80) == first + second != texts(found, 80, seed=1)
    assert texts(pickle.loads(pickle.dumps(found)), 80) == first + second
    # A row is not drawn before it was read: ten rows are in the buffer.
    assert all(int(text) < at + 10 + 1 for at, text in enumerate(first))


def test_without_shuffle_the_order_is_that_of_the_files(put, stream):
    found = stream([put("a.jsonl", lines([0, 1])), put("b.jsonl", lines([2]))], shuffle=False)
    assert texts(found, 6) == ["0", "1", "2"] * 2


def test_each_kind_of_source_gives_the_rows_that_it_gives_by_number(put, saved, hub, stream, tmp_path):
    import datasets

    rows = [{"query": str(n), "response": "r"} for n in range(150)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "f.parquet")
    paths = [
        put("f.jsonl", "\ufeff\n" + lines(range(150)).replace("\n", "\r\n\n")),
        put("f.json", json.dumps(rows)),
        put("f.csv", "query,response\r\n" + "".join(f'{n},"r\nr"\r\n' for n in range(150))),
        put("f.tsv", "query\tresponse\n" + "".join(f"{n}\tr\n\n" for n in range(150))),
        put("f.txt", "".join(f"{n}\n \n" for n in range(150))),
        str(tmp_path / "f.parquet"),
        saved(rows),
        "owner/name:a",
    ]
    for path in paths:
        by_number = build(FilesConfig(train=path, shuffle=False, cache_dir=str(tmp_path / "cache"))).train
        one_by_one = stream(path, shuffle=False).read(0, 1, 0)
        wanted = list(by_number)
        assert list(itertools.islice(one_by_one, len(wanted))) == wanted, path
    assert hub[-1] == ("owner/name", "a", "train", {"streaming": True})


def test_sampled_entries_give_their_first_rows_and_begin_again(put, stream):
    found = stream([put("a.jsonl", lines(range(3))) + "#5", put("b.jsonl", lines(range(5, 9))) + "#2"], shuffle=False)
    assert texts(found, 7) == ["0", "1", "2", "0", "1", "5", "6"]


@pytest.mark.parametrize("until_all", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_weights_interleave_as_by_number(until_all, seed):
    lengths = [3, 11, 6]
    parts = [[f"{start + n}" for n in range(length)] for start, length in zip((0, 3, 14), lengths, strict=True)]
    share = np.array([0.2, 0.5, 0.3])
    found = list(interleaved(parts, share, until_all=until_all, seed=seed))
    assert list(map(int, found)) == interleave(lengths, share, until_all=until_all, seed=seed).tolist()


def test_weighted_streams_are_drawn_anew_each_epoch_and_alike_on_all_ranks(put, stream):
    train = [put("a.jsonl", lines(range(30))), put("b.jsonl", lines(range(100, 130)))]
    found = stream(train, weights=[2, 1], shuffle=False)
    whole = texts(found, 200)
    assert 110 < sum(int(text) < 100 for text in whole) < 150
    ends = [at + 1 for at in range(200) if whole[at] in ("29", "129")]
    assert whole[: ends[0]] != whole[ends[0] : 2 * ends[0]]
    length = ends[0]
    halves = [texts(found, len(range(rank, length, 2)), rank, 2) for rank in range(2)]
    assert halves == [whole[rank:length:2] for rank in range(2)]


def test_broken_rows_are_yielded_as_errors_in_their_place(put, stream):
    content = lines([0]) + "{\n" + lines([1]) + '{"query": "<image>", "response": "r"}\n'
    found = stream(put("a.jsonl", content), shuffle=False)
    assert [text.rpartition("/")[2] for text in texts(found, 5)] == ["0", "a.jsonl:2", "1", "a.jsonl:4", "0"]


def test_a_long_line_is_passed_over(put, stream, monkeypatch):
    from harness.data.source import feed, json_text

    for module in (feed, json_text):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    found = stream(put("a.jsonl", lines([0]) + "x" * 1000 + "\n" + lines([1])), shuffle=False)
    assert [text.rpartition("/")[2] for text in texts(found, 3)] == ["0", "a.jsonl:2", "1"]


def test_a_stream_without_a_usable_row_ends_instead_of_spinning(put, stream):
    found = stream(put("a.jsonl", "{\n[]\n"))
    rows = found.read(0, 1, 0)
    assert [type(next(rows)), type(next(rows))] == [RowError, RowError]
    with pytest.raises(UserError, match=r"rank 0 of 1 found no row that can be used in all of data\.train"):
        next(rows)
    with pytest.raises(UserError, match="rank 1 of 2 found no row"):
        next(stream(put("b.jsonl", lines([0]))).read(1, 2, 0))


def test_sources_that_can_not_be_read_are_found_before_the_run(put, stream, hub):
    with pytest.raises(UserError, match=r"data\.train=.*a\.jsonl: the file has no rows"):
        stream(put("a.jsonl", "\n"))
    with pytest.raises(UserError, match=r"data\.train=.*f\.parquet: can not be read"):
        stream(put("f.parquet", "PAR1"))
    with pytest.raises(UserError, match=r"data\.train=no/one: no such file or folder, and the hub does not give it"):
        stream("no/one")


def test_fingerprints_follow_what_can_be_known(put, stream):
    path = put("a.jsonl", lines(range(5)))
    one = stream(path).fingerprint
    assert one == stream(put("b.jsonl", lines(range(5)))).fingerprint
    assert one != stream(f"{path}#3").fingerprint
    assert one != stream(path, columns={"query": "response", "response": "query"}).fingerprint
    assert one != stream(put("a.jsonl", lines(range(6)))).fingerprint


def test_a_buffer_gives_each_item_once():
    for size, count in itertools.product((1, 3, 50), (0, 1, 3, 20)):
        assert sorted(shuffled(iter(range(count)), size, Random(0))) == list(range(count))


def test_a_file_that_is_emptied_during_a_run_ends_it(put, stream):
    path = put("a.jsonl", lines([0, 1]))
    rows = stream(f"{path}#5", shuffle=False).read(0, 1, 0)
    next(rows)
    put("a.jsonl", "")
    with pytest.raises(UserError, match=r"data\.train=.*a\.jsonl: the file has no rows"):
        for _ in range(9):
            next(rows)
