import json
import pickle
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from harness.data.row_error import RowError
from harness.data.source.open import Opener
from harness.data.source.rows import TableRows
from harness.data.source.spec import parse


def line(number, **more):
    return json.dumps({"query": f"q{number}", "response": "r"} | more) + "\n"


@pytest.fixture
def rows(put, options, reading):
    """Of two files: three rows, the second broken, and two with an image."""
    put("a.jsonl", line(0) + "\n" + '{"query": 1}\n' + line(2))
    put("b.jsonl", line(3, images=["p.png"]) + line(4, images=["/nowhere.png"]))

    def make(index=range(5), reading=reading, folder="."):
        opener = Opener(options)
        for name in ("a.jsonl", "b.jsonl"):
            opener.open("data.train", parse("data.train", str(Path(put("x", "")).parent / folder / name)))
        return TableRows(tuple(opener.tables), reading, np.array(index, dtype=np.int64))

    return make


def test_rows_are_read_and_checked_when_asked_for(rows, picture, tmp_path):
    picture(4, 6).save(tmp_path / "p.png")
    found = rows([3, 0, 2, 0])
    assert [found[i].messages[0].text for i in range(4)] == ["q3", "q0", "q2", "q0"]
    assert [found.origin(i).rpartition("/")[2] for i in range(4)] == [
        "b.jsonl:1",
        "a.jsonl:1",
        "a.jsonl:4",
        "a.jsonl:1",
    ]
    assert found[0].images[0].size() == (6, 4) and found[0].images[0].max_pixels == 10**6
    assert len(found) == 4 and len(list(found)) == 4


def test_one_rows_error_is_that_rows_own(rows):
    found = rows()
    assert found[0].origin == found.origin(0) and found[2].messages
    for index, message in ((1, r"a\.jsonl:3: "), (4, r"b\.jsonl:2: .*nowhere\.png")):
        with pytest.raises(RowError, match=message):
            found[index]


def test_root_is_where_media_start_from_and_stay(rows, reading, picture, tmp_path):
    (tmp_path / "media").mkdir()
    picture(4, 6).save(tmp_path / "media" / "p.png")
    with pytest.raises(RowError, match=r"b\.jsonl:1: image 'p\.png' does not exist"):
        rows()[3]
    assert rows(reading=replace(reading, root=tmp_path / "media"))[3].images[0].size() == (6, 4)
    (tmp_path / "media" / "p.png").unlink()
    (tmp_path / "media" / "p.png").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(RowError, match=r"b\.jsonl:1: .* is outside"):
        rows(reading=replace(reading, root=tmp_path / "media"))[3]


def test_fingerprints_follow_what_changes_the_rows(rows, reading, put):
    one = rows()
    assert one.fingerprint == rows().fingerprint and one.content == rows().content
    assert rows([0]).fingerprint != one.fingerprint and rows([0]).content != one.content
    named = rows(reading=replace(reading, columns={"query": "response", "response": "query"}))
    assert named.fingerprint != one.fingerprint and named.content != one.content
    rooted = rows(reading=replace(reading, root=Path("/")))
    assert rooted.fingerprint != one.fingerprint and rooted.content == one.content
    for name in ("a.jsonl", "b.jsonl"):
        put(f"copy/{name}", Path(one.tables[0].folder / name).read_bytes())
    copied = rows(folder="copy")
    assert copied.fingerprint != one.fingerprint and copied.content == one.content
    put("b.jsonl", line(5) + line(6))
    assert rows().content != one.content


def _texts(found):
    return [found[i].messages[0].text for i in (0, 2)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_works_in_other_processes(rows, start):
    found = rows()
    found[0]
    with get_context(start).Pool(1) as pool:
        assert pool.apply(_texts, [found]) == ["q0", "q2"]
    assert pickle.loads(pickle.dumps(found)).fingerprint == found.fingerprint
