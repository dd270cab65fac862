import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.row_error import RowError
from harness.data.source import json_text
from harness.data.source.json_text import MAX_DEPTH, deeper_than, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.booleans())
def test_reads_what_json_writes(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), "f:1") == value


@given(st.binary(max_size=200) | st.text('[]{}":,\\0129eE.-NaIu d8', max_size=60).map(str.encode))
def test_any_bytes_give_a_value_or_a_row_error(content):
    try:
        parse_json(content, "f:1")
    except RowError as error:
        assert str(error).startswith("f:1: ")


def test_a_byte_order_mark_is_no_part_of_the_row():
    assert parse_json(b"\xef\xbb\xbf{}", "f:1") == {}


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b'{"a": [}', "not JSON", r"f:1: not JSON at column 8 \(Expecting value\)"),
        (b"", "not JSON", "not JSON at column 1"),
        (b'{"a": 1} {"b": 2}', "not JSON", "Extra data"),
        (b'{"a": "\xe9"}', "not UTF-8", r"not UTF-8 .* at byte 7\); save the file as UTF-8"),
        (b"[" * 200_000, "hostile JSON", "more than 100 lists and objects inside each other"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "hostile JSON", "more than 100 lists"),
        (b"9" * 5000, "hostile JSON", "an integer of 5,000 digits"),
        (b"[1e999]", "hostile JSON", "1e999 is over the range of floats"),
        (b"[NaN]", "hostile JSON", "NaN is no JSON; write null"),
        (b"[-Infinity]", "hostile JSON", "-Infinity is no JSON"),
        (b'{"a": 1, "a": 2}', "hostile JSON", "the key 'a' stands twice"),
        (rb'{"a": "\ud800"}', "hostile JSON", r"contains '\\ud800', half a surrogate pair"),
        (rb'{"\uDFFF": 1}', "hostile JSON", "half a surrogate pair"),
    ],
)
def test_what_is_refused(content, reason, message):
    with pytest.raises(RowError, match=message) as caught:
        parse_json(content, "f:1")
    assert caught.value.reason == reason


def test_a_row_over_the_limit(monkeypatch):
    monkeypatch.setattr(json_text, "MAX_ROW_BYTES", 1 << 20)
    assert parse_json(b'"' + b"a" * 1000 + b'"', "f:1") == "a" * 1000
    with pytest.raises(RowError, match=r"f:1: the row is over 1 MiB; keep images and videos in files of their own"):
        parse_json(b'"' + b"a" * (1 << 20) + b'"', "f:1")


def test_pairs_of_surrogates_are_characters():
    assert parse_json(rb'"\ud83d\ude00"', "f:1") == "\N{GRINNING FACE}"


@given(VALUES)
def test_depth_is_counted_outside_of_strings(value):
    def depth(inner):
        if isinstance(inner, dict):
            return 1 + max(map(depth, inner.values()), default=0)
        return 1 + max(map(depth, inner), default=0) if isinstance(inner, list) else 0

    content = json.dumps(value).encode()
    assert not deeper_than(content, depth(value))
    if depth(value):
        assert deeper_than(content, depth(value) - 1)


def test_many_lists_beside_each_other_and_brackets_in_text_are_not_deep():
    assert len(parse_json(b"[" + b",".join([b"[]"] * 10_000) + b"]", "f:1")) == 10_000
    assert parse_json(b'"' + b"[" * 10_000 + b'"', "f:1") == "[" * 10_000
    inner = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(inner, "f:1")


def test_a_string_without_end_is_looked_at_once():
    # Seconds, if the search for strings began again at each of the quotes.
    with pytest.raises(RowError, match="not JSON"):
        parse_json(b"[]" * 101 + b'"\\"' * 300_000, "f:1")
