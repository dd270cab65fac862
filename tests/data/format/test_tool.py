import json

import pytest

from harness.data.format.tool import calls, in_call_order, schemas
from harness.data.row_error import RowError

FUNCTION = {"name": "aqi", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    "value", [[TOOL], TOOL, [FUNCTION], json.dumps([TOOL]), json.dumps(TOOL), [json.dumps(FUNCTION)]]
)
def test_tools_in_all_their_forms(value):
    assert schemas(value, "f:9") == (TOOL,)


def test_no_tools():
    assert schemas(None, "f:9") == schemas([], "f:9") == schemas("", "f:9") == schemas("[]", "f:9") == ()


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        ("search", "not JSON", r"f:9: tools is a string that is not JSON: 'search'"),
        ([3], "wrong type", r"an entry of tools must be an object, got int"),
        (3, "wrong type", r"an entry of tools must be an object, got int"),
        ([{"type": "web_search"}], "wrong type", r"an entry of tools has no name"),
        ([{"function": {"name": 3}}], "wrong type", r"an entry of tools has no name"),
        ([{"name": "f", "x": float("inf")}], "wrong type", r"tools can not be written as JSON"),
        ([{"name": "f", "x": json.loads("[" * 100 + "]" * 100)}], "nested too deeply", r"tools has more than 64"),
        ([{"name": "\ud800"}], "broken text", r"tools contains '\\ud800'"),
    ],
)
def test_tools_that_can_not_be_used(value, reason, message):
    with pytest.raises(RowError, match=message) as caught:
        schemas(value, "f:9")
    assert caught.value.reason == reason


def _calls(*entries):
    return calls({"tool_calls": list(entries)}, "f:9")


def test_arguments_stay_as_they_are_written():
    written = '{"zoom":  0.70, "n": 1e3}'
    assert _calls({"function": {"name": "f", "arguments": written}}) == [f'{{"name": "f", "arguments": {written}}}']
    assert _calls({"name": 'f"é', "arguments": {"a": "é"}}) == ['{"name": "f\\"é", "arguments": {"a": "é"}}']
    assert _calls({"name": "f"}, {"name": "f", "arguments": ""}) == ['{"name": "f", "arguments": {}}'] * 2
    assert calls({}, "f:9") == calls({"tool_calls": None, "function_call": {}}, "f:9") == []


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ({"tool_calls": {"name": "f"}}, "wrong type", r"f:9: tool_calls must be a list, got dict"),
        ({"tool_calls": ["f"]}, "wrong type", r"a tool call must be an object with the name of a function"),
        ({"tool_calls": [{"function": {}}]}, "wrong type", r"a tool call must be an object with the name"),
        ({"function_call": "auto"}, "wrong type", r"a tool call must be an object with the name"),
        ({"function_call": {"name": "f", "arguments": "x"}}, "not JSON", r"arguments of a tool call are not JSON: 'x'"),
        ({"function_call": {"name": "f", "arguments": "[1]"}}, "wrong type", r"must be an object, got list"),
        ({"function_call": {"name": "f", "arguments": [1]}}, "wrong type", r"must be an object, got list"),
        ({"function_call": {"name": "f", "arguments": "[" * 10**5}}, "not JSON", r"arguments of a tool call are not"),
        (
            {"function_call": {"name": "f", "arguments": '{"a":' * 100 + "1" + "}" * 100}},
            "nested too deeply",
            r"the arguments of a tool call has more than 64",
        ),
    ],
)
def test_calls_that_can_not_be_used(message, reason, text):
    with pytest.raises(RowError, match=text) as caught:
        calls(message, "f:9")
    assert caught.value.reason == reason


def _result(name, content):
    return {"role": "tool", "tool_call_id": name, "content": content}


def test_results_follow_the_order_of_their_calls():
    asked = {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}
    first, second, end = _result("a", "1"), _result("b", "2"), {"role": "assistant", "content": "end"}
    assert in_call_order([asked, second, first, end]) == [asked, first, second, end]
    for odd in ([asked, second, end], [asked, second, second, end], [asked, _result("c", "3"), first], ["x", asked]):
        assert in_call_order(odd) == odd
