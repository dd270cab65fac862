import pytest

from harness.data.format import value
from harness.data.row_error import RowError


def _nested(depth):
    inner = 0
    for _ in range(depth):
        inner = [inner]
    return inner


def test_text_takes_any_character_but_half_a_pair():
    assert value.text("Grüße 🙂 雪\x00", "f:9", "text") == "Grüße 🙂 雪\x00"
    with pytest.raises(RowError, match=r"f:9: text contains '\\ud83d', half a surrogate pair") as caught:
        value.text("a\ud83d", "f:9", "text")
    assert caught.value.reason == "broken text"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((None, []), ("", []), ([], []), ("a.png", ["a.png"]), (("a", "b"), ["a", "b"])),
        *(('["a", "b"]', ["a", "b"]), ("[1].png", ["[1].png"]), ("[" * 10**5, ["[" * 10**5])),
        ({"path": "a"}, [{"path": "a"}]),
    ],
)
def test_one_or_several(given, expected):
    assert value.listed(given) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "no list", "[1", "os.system('x')", "{[1]: 2}", "\0", "[" + "1, " * 10**6 + "None]"),
        *("[" * 10**5, "(" * 500 + ")" * 500, "-" * 10**5 + "1", "1+" * 10**5 + "1", "a." * 10**5 + "a"),
    ],
    ids=lambda text: repr(text[:8]),
)
def test_strings_that_are_no_json(text):
    with pytest.raises(RowError, match=r"f:9: history is a string that is not JSON") as caught:
        value.structured(text, "f:9", "history")
    assert caught.value.reason == "not JSON"


def test_json_goes_before_python():
    assert value.structured('[["a", null]]', "f:9", "history") == [["a", None]]
    assert value.structured("[['a\\d', None]]", "f:9", "history") == [["a\\d", None]]
    assert value.structured(7, "f:9", "history") == 7


def test_what_json_has_not_is_refused():
    assert value.to_json({"é": [1.0, True, None]}, "f:9", "tools") == '{"é": [1.0, true, null]}'
    for broken in (float("nan"), {1, 2}, b"x", 10**5000):
        with pytest.raises(RowError, match=r"f:9: tools can not be written as JSON"):
            value.to_json([broken], "f:9", "tools")
    with pytest.raises(RowError, match=r"f:9: tools contains '\\udc00', half"):
        value.to_json(["\udc00"], "f:9", "tools")


def test_nesting_ends_at_its_limit():
    value.check_nesting(_nested(value.MAX_NESTING - 1), "f:9", "tools")
    with pytest.raises(RowError, match=r"f:9: tools has more than 64 lists and objects inside each other"):
        value.check_nesting({"a": _nested(100_000)}, "f:9", "tools")


def test_messages_show_values_that_can_not_be_written_out():
    assert value.excerpt("x" * 500) == repr("x" * 80)
    assert value.excerpt(10**5000) == "int" and value.excerpt(_nested(10**5)) == "list"
    assert value.excerpt(None) == "null" and value.excerpt(True) == "True" and value.excerpt(float("nan")) == "float"
