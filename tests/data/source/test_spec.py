import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.source.spec import Spec, parse
from harness.errors import UserError

WORD = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=12)


@given(
    owner=WORD,
    name=WORD,
    subsets=st.lists(WORD, max_size=3),
    sample=st.none() | st.integers(1, 10**11),
)
def test_what_is_put_together_is_taken_apart(owner, name, subsets, sample):
    path = f"nowhere-{owner}/{name}"
    text = path + (":" + "/".join(subsets) if subsets else "") + (f"#{sample}" if sample else "")
    assert parse("data.train", text) == Spec(text, path, tuple(subsets), sample)


@given(st.text(max_size=30))
def test_any_text_gives_a_spec_or_a_user_error(text):
    try:
        spec = parse("data.train", text)
    except UserError as error:
        assert str(error).startswith("data.train=")
    else:
        assert spec.path and spec.text == text


@pytest.mark.parametrize("name", ["a.jsonl", "a#5.jsonl", "a:b.jsonl", "a:b#7"])
@pytest.mark.parametrize("tail", ["", "#3", ":x/y#3"])
def test_an_existing_path_wins_whatever_its_name(put, name, tail):
    path = put(name, "x")
    spec = parse("data.train", path + tail)
    assert spec.path == path
    assert spec.sample == (3 if tail else None)
    assert spec.subsets == (("x", "y") if ":" in tail else ())


def test_the_longest_path_wins(put):
    put("a/one", "x")
    longer = put("a:b", "x")
    assert parse("data.train", f"{longer}:c").path == longer


def test_a_drive_is_no_subset():
    assert parse("data.train", r"C:\rows.jsonl#4") == Spec(r"C:\rows.jsonl#4", r"C:\rows.jsonl", (), 4)
    assert parse("data.train", "C:/rows:part").subsets == ("part",)


def test_home_is_found(put, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put("a:b.jsonl", "x")
    assert parse("data.train", "~/a:b.jsonl").path == "~/a:b.jsonl"


@pytest.mark.parametrize("tail", ["#", "#0", "#-1", "#1k", "#1.5", "#²", "#1234567890123"])
def test_what_is_no_number_of_rows(tail):
    with pytest.raises(
        UserError, match=r"data\.val=.*: no such file; behind # stands how many rows to take, 1 or more"
    ):
        parse("data.val", f"a.jsonl{tail}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":a", "begin with a file"),
        ("#3", "begin with a file"),
        ("owner/name:", "names an empty subset"),
        ("owner/name:a//b", "names an empty subset"),
    ],
)
def test_empty_parts(text, message):
    with pytest.raises(UserError, match=f"data.train={text}: {message}"):
        parse("data.train", text)
