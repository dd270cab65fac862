import pytest

from harness.data.row_error import RowError


@pytest.mark.parametrize(
    ("raw", "reason", "message"),
    [
        ({"query": "Q"}, "no assistant turn", r"f:9: no assistant turn in the row, so there is nothing to learn"),
        ({"query": 3, "response": "A"}, "wrong type", r"content of a message must be a string or a list, got int"),
        ({"query": "Q", "response": 3}, "wrong type", r"content of a message must be a string or a list, got int"),
        ({"query": "Q", "answers": {"text": ["A"]}}, "wrong type", r"must be a string or a list, got dict"),
        ({"query": "Q", "response": [3]}, "wrong type", r"a content part 3 can not be used"),
        ({"instruction": "I", "input": 3, "output": "A"}, "wrong type", r"f:9: input must be a string, got int"),
        (
            {"instruction": "I", "input": "X", "query": "Q", "output": "A"},
            "conflicting keys",
            r"instruction and input make up the query, and the row has a query too",
        ),
        ({"query": "Q", "response": "A", "history": 3}, "wrong type", r"history must be a list of \[query, response\]"),
        ({"query": "Q", "response": "A", "history": "x"}, "not JSON", r"history is a string that is not JSON: 'x'"),
        ({"query": "Q", "response": "A", "history": [["a"]]}, "wrong type", r"each round of history must be \[query"),
        ({"query": "Q", "response": "A", "history": ["ab"]}, "wrong type", r"each round of history .*, got str"),
        ({"query": "Q", "response": "A", "history": [[1, "b"]]}, "wrong type", r"must be a string or a list, got int"),
    ],
)
def test_rows_that_can_not_be_used(raw, reason, message, read):
    with pytest.raises(RowError, match=message) as caught:
        read(raw)
    assert caught.value.reason == reason
