import pytest

from harness.data.format import keys
from harness.data.row_error import RowError
from harness.errors import UserError

PAIR = {"query": "Q", "response": "A"}


def test_columns_rename_before_the_format_is_told(read):
    assert read({"q": "Q", "a": "A"}, q="query", a="response") == read(PAIR)
    assert read({"chat": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, chat="messages") == read(
        PAIR
    )
    assert read({"input": "A", "output": "Q"}, input="output", output="input") == read(PAIR)


def test_a_column_can_be_left_out(read):
    row = {"messages": "old", "new": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    assert read(row | {"label": "cat"}, messages="_", new="messages", label="_") == read(PAIR)


def test_a_chosen_column_goes_before_other_names_of_its_key(read):
    row = {"prompt": "Q", "answer": "A", "solution": "Long", "text": "All"}
    assert read(row, answer="response") == read(PAIR)


def test_the_own_name_of_a_key_goes_before_its_other_names(read):
    assert read({**PAIR, "prompt": "P", "solution": "S"}) == read(PAIR)
    assert read({**PAIR, "Query": "P"}) == read(PAIR)


def test_an_empty_name_is_no_source(read):
    assert read({"prompt": "Q", "input": "", "output": "A", "text": None}) == read(PAIR)


@pytest.mark.parametrize(
    ("raw", "columns", "reason", "message"),
    [
        (PAIR, {"q": "query"}, "missing column", r"f:9: the row has no column 'q'; data\.columns names it"),
        ({**PAIR, "q": "P"}, {"q": "query"}, "conflicting keys", r"f:9: the row has two sources of 'query'"),
        ({"a": "1", "b": "2"}, {"a": "query", "b": "query"}, "conflicting keys", r"two sources of 'query'; map one"),
        ({"QUERY": "1", "Query": "2"}, {}, "conflicting keys", r"two sources of 'query'"),
        (
            {"prompt": "Q", "answer": "A", "text": "T"},
            {},
            "conflicting keys",
            r"answer and text are names of the response, and .*; choose one with data\.columns: {answer: response}",
        ),
        ({**PAIR, "audios": ["a.wav"]}, {}, "unsupported key", r"'audios' is not supported; .*{audios: _}"),
        ({**PAIR, "margin": 0.5}, {}, "unsupported key", r"'margin' is not supported"),
    ],
)
def test_keys_that_can_not_be_used(raw, columns, reason, message, read):
    with pytest.raises(RowError, match=message) as caught:
        read(raw, **columns)
    assert caught.value.reason == reason


def test_empty_cells_are_absent(read):
    row = {"messages": "", "tools": "", "label": "", "channel": "", "min_pixels": "", "images": "", "prompt": "Q"}
    assert read(row | {"query": "", "response": "A"}) == read(PAIR)
    assert read({"system": "", **PAIR}).messages[0].role == "system"


def test_unsupported_keys_may_be_empty(read):
    assert read({**PAIR, "audios": [], "margin": None, "loss_scale": ""}) == read(PAIR)


def test_columns_may_only_name_keys_that_are_read():
    keys.check_columns({"a": "_", "b": "query", "c": "prompt", "d": "rejected_images"})
    with pytest.raises(UserError, match=r"data\.columns\.a=audios: is no key of a row; known: answer, "):
        keys.check_columns({"a": "audios"})
