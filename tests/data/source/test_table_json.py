import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.row_error import RowError
from harness.data.source.table_json import open_json
from harness.errors import UserError

ROWS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.lists(st.integers())))


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 2]), ascii_only=st.booleans(), mark=st.booleans())
def test_finds_each_row_of_a_list(tmp_path_factory, rows, indent, ascii_only, mark):
    path = tmp_path_factory.mktemp("json") / "f.json"
    path.write_text("\ufeff" * mark + json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    table = open_json(str(path), "f.json", "data.train")
    assert [table.raw(i) for i in range(len(table))] == rows
    assert [table.origin(i) for i in range(len(table))] == [f"f.json[{i}]" for i in range(len(rows))]


def test_pickles_as_offsets(put):
    table = open_json(put("f.json", json.dumps([{"a": "x" * 1000}] * 100)), "f.json", "data.train")
    assert len(pickle.dumps(table)) < 3000
    assert pickle.loads(pickle.dumps(table)).raw(99) == {"a": "x" * 1000}


def test_mixed_schemas_and_rows_that_can_not_be_used(put):
    deep = "[" * 150 + "]" * 150
    content = (
        f'[{{"a": null}}, {{"a": ["x"]}}, {{"a": NaN}}, {{"a": {deep}}}, {{"a": 1, "a": 2}}, {{"a": {"9" * 5000}}}, 3]'
    )
    table = open_json(put("f.json", content), "f.json", "data.train")
    assert [table.raw(i) for i in (0, 1, 6)] == [{"a": None}, {"a": ["x"]}, 3]
    for index, message in ((2, "NaN is no JSON"), (3, "more than 100"), (4, "stands twice"), (5, "5,000 digits")):
        with pytest.raises(RowError, match=rf"f\.json\[{index}\]: .*{message}"):
            table.raw(index)


def test_text_that_is_not_utf_8_is_one_rows_matter(put):
    table = open_json(put("f.json", b'[{"a": "\xe9"}, {"a": "\xc3\xa9"}]'), "f.json", "data.train")
    assert table.raw(1) == {"a": "é"}
    with pytest.raises(RowError, match=r"f\.json\[0\]: not UTF-8"):
        table.raw(0)


def test_json_lines_under_the_name_of_json(put):
    table = open_json(put("f.json", '\ufeff\n{"a": 1}\n\n{"a": [2]}\n'), "f.json", "data.train")
    assert [(table.origin(i), table.raw(i)) for i in range(2)] == [("f.json:2", {"a": 1}), ("f.json:4", {"a": [2]})]
    one = open_json(put("g.json", '{"messages": [1, 2], "images": [3, 4]}'), "g.json", "data.train")
    assert len(one) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file has no rows"),
        (" \n\n", "the file has no rows"),
        ('{\n "a": 1\n}', "holds neither a list of rows nor one row a line"),
        ('"text"', "holds neither a list of rows nor one row a line"),
        ('{"query": ["a", "b"], "response": ["c", "d"]}', "holds an object of columns; write a list of rows"),
        ('[\n{"a": 1},\n{"b": }]', r"not JSON at line 3 column 7 \(Expecting value\); nothing behind it can be read"),
        ('[{"a": 1} {"b": 2}]', r"not JSON at line 1 \(no comma between two rows\)"),
        ('[{"a": 1}', r"not JSON at line 1 \(no comma"),
        ("[1,", "not JSON at line 1 column 4"),
        ("[1] [2]", "more stands behind the list"),
        ("[\n" + "[" * 200_000, "the row at line 2 is nested too deeply|not JSON at line"),
    ],
)
def test_files_that_can_not_be_read(put, content, message):
    with pytest.raises(UserError, match=rf"data\.train=f\.json: ({message})"):
        open_json(put("f.json", content), "f.json", "data.train")
