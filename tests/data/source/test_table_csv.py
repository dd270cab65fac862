import csv
import io
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.row_error import RowError
from harness.data.source import table_csv
from harness.data.source.table_csv import open_csv, records
from harness.errors import UserError

CELL = st.text(st.sampled_from("ab,\"\n\t 'é;"), max_size=6)


@pytest.fixture
def table(put):
    def make(content, delimiter=",", **columns):
        return open_csv(put("f.csv", content), "f.csv", "data.train", delimiter, columns)

    return make


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL)), delimiter=st.sampled_from(",\t"), end=st.sampled_from(["\n", "\r\n"])
)
def test_finds_what_the_csv_module_wrote(tmp_path_factory, rows, delimiter, end):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([("x", "y", "z"), *rows])
    path = tmp_path_factory.mktemp("csv") / "f.csv"
    path.write_bytes(text.getvalue().encode())
    found = open_csv(str(path), "f.csv", "data.train", delimiter, {})
    wanted = [dict(zip("xyz", (cell or None for cell in row), strict=True)) for row in rows]
    assert [found.raw(i) for i in range(len(found))] == wanted
    assert [record.content for record in records(str(path), "f.csv", delimiter)] == [
        found.file.read(*map(int, found.bounds_N1[i : i + 2])) for i in range(len(found))
    ]


def test_fields_of_several_lines_and_blank_lines_keep_the_line_numbers(table):
    found = table('\ufeffquery,response\n"one\ntwo",1\n\nthree,"4"\n')
    assert [(found.origin(i), found.raw(i)) for i in range(2)] == [
        ("f.csv:2", {"query": "one\ntwo", "response": "1"}),
        ("f.csv:5", {"query": "three", "response": "4"}),
    ]
    assert pickle.loads(pickle.dumps(found)).raw(1)["query"] == "three"


def test_text_stays_text_and_a_column_without_a_name_is_left_out(table):
    found = table(",query,response\n0,007,\n1,[a],{}\n")
    assert [found.raw(i) for i in range(2)] == [{"query": "007", "response": None}, {"query": "[a]", "response": "{}"}]


def test_cells_of_media_and_numbers(table):
    images = json.dumps([{"path": "a.png"}, "b.png"]).replace('"', '""')
    found = table(f'Images,label,max_pixels,pic\n"{images}",True,100,"{{""path"": 1}}"\na.png,false,,[x\n', pic="image")
    assert found.raw(0) == {
        "Images": [{"path": "a.png"}, "b.png"],
        "label": True,
        "max_pixels": 100,
        "pic": {"path": 1},
    }
    assert found.raw(1) == {"Images": "a.png", "label": False, "max_pixels": None, "pic": "[x"}


def test_long_cells_are_read(table):
    text = "x" * 300_000
    assert table(f"query,response\n{text},1\n").raw(0)["query"] == text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"a,b,c", r"f\.csv:3: 3 cells for 2 columns; quote cells that hold a ','"),
        (b"a", "1 cells for 2 columns"),
        (b'"a"b,c', r"f\.csv:3: not CSV \(',' expected after '\"'\); check the row's quotes"),
        (b"\xff,b", r"f\.csv:3: not UTF-8"),
    ],
)
def test_a_broken_record_leaves_the_others_alone(put, row, message):
    found = open_csv(put("f.csv", b"x,y\n1,2\n" + row + b"\n3,4\n"), "f.csv", "data.train", ",", {})
    assert found.raw(0) == {"x": "1", "y": "2"} and found.raw(2) == {"x": "3", "y": "4"}
    with pytest.raises(RowError, match=message):
        found.raw(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"data\.train=f\.csv: the file has no rows"),
        ("a,b,a\n", r"data\.train=f\.csv: the column 'a' stands twice in the first line; rename one"),
        ('a,b\n1,2\n"3,4\n5,6\n', r"f\.csv:3: not CSV \(a quote is open up to the end of the file\)"),
        ('a,b\n1,"', r"f\.csv:2: not CSV \(a quote is open up to the end"),
        ('"a"x,b\n', r"f\.csv:1: not CSV"),
        ("a,b\n1,2\r3,4\n", r"f\.csv:2: not CSV \(new-line character"),
    ],
)
def test_files_that_can_not_be_read(table, content, message):
    with pytest.raises(UserError, match=message):
        table(content)


def test_a_record_over_the_limit(table, monkeypatch):
    monkeypatch.setattr(table_csv, "MAX_ROW_BYTES", 100)
    with pytest.raises(UserError, match=r"f\.csv:2: not CSV \(a record of over 0 MiB\); check the quotes from here on"):
        table("a,b\n" + '1,"' + "x\n" * 100 + '"\n')
