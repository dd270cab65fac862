import hashlib
import json
import pickle
import time
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.row_error import RowError
from harness.data.source import json_text, table_lines
from harness.data.source.json_text import parse_json
from harness.data.source.table_lines import open_lines, parse_text

BLANK = st.sampled_from([b"", b" ", b"\t \r", b"\r"])
LINES = st.lists(BLANK | st.sampled_from([b"1", b" 2", b'"three"\r', b"4 "]))


@settings(max_examples=200, deadline=None)
@given(lines=LINES, ends=st.booleans(), mark=st.booleans(), block=st.sampled_from([1, 2, 3, 5, 64]))
def test_finds_each_line_whatever_the_blocks(tmp_path_factory, lines, ends, mark, block):
    content = b"\xef\xbb\xbf" * mark + b"\n".join(lines) + b"\n" * ends
    path = tmp_path_factory.mktemp("lines") / "f"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_lines, "_BLOCK", block)
        table = open_lines(str(path), "f", parse_json)
    wanted = [(f"f:{n}", json.loads(line)) for n, line in enumerate(lines, start=1) if line.strip()]
    assert [(table.origin(i), table.raw(i)) for i in range(len(table))] == wanted
    assert table.digest == hashlib.sha256(content).hexdigest()


def test_a_broken_line_leaves_the_others_alone(put):
    lines = [b'{"a": 1}', b"", b'{"a": ', b'{"a": "\xff"}', b"", b"\xef\xbb\xbf{}", b"x" * 50]
    table = open_lines(put("r.jsonl", b"\n".join(lines)), "r.jsonl", parse_json)
    assert table.raw(0) == {"a": 1} and table.raw(3) == {}
    for index, message in ((1, r"r\.jsonl:3: not JSON"), (2, r"r\.jsonl:4: not UTF-8"), (4, r"r\.jsonl:7: not JSON")):
        with pytest.raises(RowError, match=message):
            table.raw(index)


def test_a_long_line_is_refused_unread_and_blank_lines_behind_a_row_do_not_count(put, monkeypatch):
    for module in (json_text, table_lines):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    content = b'{"a": 1}\n' + b"\n" * 500 + b'"' + b"x" * 1000 + b'"\n' + b'{"a": 2}'
    table = open_lines(put("r.jsonl", content), "r.jsonl", parse_json)
    assert (table.raw(0), table.raw(2)) == ({"a": 1}, {"a": 2})
    with pytest.raises(RowError, match=r"r\.jsonl:502: the row is over"):
        table.raw(1)


def test_text_keeps_its_spaces_but_not_its_line_end(put):
    table = open_lines(put("t.txt", "one\r\n\n  two\u2028three \n"), "t.txt", parse_text)
    assert [table.raw(i) for i in range(2)] == [{"text": "one"}, {"text": "  two\u2028three "}]
    assert table.origin(1) == "t.txt:3"
    bad = open_lines(put("b.txt", b"\xff"), "b.txt", parse_text)
    with pytest.raises(RowError, match=r"b\.txt:1: not UTF-8"):
        bad.raw(0)


def _read_all(table):
    return [(table.origin(i), table.raw(i)) for i in range(len(table))]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_reads_in_other_processes(put, start):
    path = put("r.jsonl", "".join(f'{{"n": {i}}}\n' for i in range(2000)))
    table = open_lines(path, "r.jsonl", parse_json)
    assert len(pickle.dumps(table)) < 9 * 2000
    mine = _read_all(table)
    with get_context(start).Pool(2) as pool:
        assert pool.map(_read_all, [table] * 4) == [mine] * 4


@pytest.mark.slow
def test_a_million_lines_in_two_seconds_and_eight_bytes_each(tmp_path):
    path = tmp_path / "big.jsonl"
    line = json.dumps({"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]})
    path.write_text(f"{line}\n" * 1_000_000)
    begun = time.perf_counter()
    table = open_lines(str(path), "big.jsonl", parse_json)
    assert time.perf_counter() - begun < 2
    assert len(table) == 1_000_000 and table.origin(999_999) == "big.jsonl:1000000"
    assert table.bounds_N1.nbytes + table.blanks_K.nbytes == 8_000_008
