import pytest

from harness.data.row import Media, Message
from harness.data.row_error import RowError
from harness.data.template.agent.call import Call, description, parse_call, schemas

DEEP = '{"name": "f", "arguments": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "f", "arguments": {"a": "北京"}}', Call("f", {"a": "北京"})),
        ('{"name": "f", "parameters": {"a": [1, null]}}', Call("f", {"a": [1, None]})),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', Call("f", {"a": 1})),
        ('{"name": "f", "arguments": {}}', Call("f", {})),
    ],
)
def test_calls(talk, text, call):
    row = talk(("tool_call", text))
    assert parse_call(row, row.messages[0], 1) == call


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("look(1)", r"message 1, a tool_call, is 'look\(1\)'; write \{\"name\""),
        ("[1]", "is '.1.'; write"),
        ('{"name": 3, "arguments": {}}', "write"),
        ('{"name": "", "arguments": {}}', "write"),
        ('{"name": "f"}', "calls 'f'; its .arguments. must be a JSON object"),
        ('{"name": "f", "arguments": "x"}', "must be a JSON object"),
        ('{"name": "f", "arguments": [1]}', "must be a JSON object"),
        (DEEP, "write"),
    ],
)
def test_calls_that_are_none(talk, text, match):
    row = talk(("tool_call", text))
    with pytest.raises(RowError, match=match) as found:
        parse_call(row, row.messages[0], 1)
    assert found.value.reason == "tool call"


def test_a_call_shows_no_image(talk):
    row = talk(("user", "?"))
    with pytest.raises(RowError, match="message 2, a tool_call, shows an image or video"):
        parse_call(row, Message("tool_call", ("{}", Media.image)), 2)


def test_tools_in_all_their_forms(talk, weather):
    bare = weather["function"]
    row = talk(("user", "?"), tools=(weather, bare, '{"name": "g"}'))
    assert schemas(row) == [weather, weather, {"type": "function", "function": {"name": "g"}}]


@pytest.mark.parametrize(
    "tool",
    [3, None, "g()", {"type": "web_search"}, {"name": 3}, {"type": "function", "function": 3}, {"function": {}}, []],
)
def test_tools_that_are_none(talk, weather, tool):
    with pytest.raises(RowError, match="tool 2 has no function name; write") as found:
        schemas(talk(("user", "?"), tools=(weather, tool)))
    assert found.value.reason == "tools"


def test_descriptions_fall_back_to_what_qwen_agent_calls_them(weather):
    assert description(weather)[:3] == ("realtime_aqi", "realtime_aqi", "Air quality now.")
    function = {"name": "f", "name_for_human": "Find", "description_for_model": "finds", "parameters": "[]"}
    assert description({"function": function}) == ("f", "Find", "finds", "[]")
    assert description({"function": {"name": "f"}}) == ("f", "f", "", "{}")
