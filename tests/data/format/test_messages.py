import pytest

from harness.data.format.messages import turns
from harness.data.format.turn import Turn
from harness.data.row_error import RowError

ASK = {"role": "user", "content": "Q"}


def _answer(**more):
    return {"role": "assistant", "content": "A", **more}


def _weights(*messages):
    return [turn.weight for turn in turns(list(messages), "f:9")]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("system", "system"), ("developer", "system"), ("human", "user"), ("function-call", "tool_call")),
        *((name, "assistant") for name in ("gpt", "chatgpt", "bing", "bard", "bot")),
        *((name, "tool_response") for name in ("tool", "function", "function_response", "observation")),
    ],
)
def test_names_of_roles(name, role):
    assert turns([{"role": name, "content": "x"}], "f:9") == turns([{"from": name, "value": "x"}], "f:9")
    assert turns([{"role": name, "content": "x"}], "f:9") == [Turn(role, ("x",))]


def test_loss_says_whether_and_loss_scale_how_much():
    assert _weights(_answer(), _answer(loss=None), _answer(loss=True), _answer(loss=0)) == [None, None, 1.0, 0.0]
    assert _weights(_answer(loss_scale=2), _answer(loss=1.0, loss_scale=0.5), _answer(loss_scale=0)) == [2.0, 0.5, 0.0]
    assert _weights(_answer(weight=0), _answer(weight=1)) == [0.0, 1.0]
    assert _weights({**ASK, "loss": False}, {"role": "tool_call", "content": "{}", "loss_scale": 3}) == [0.0, 3.0]


def test_a_message_with_calls_keeps_its_text_and_weight():
    call = {"name": "f", "arguments": {}}
    found = turns([_answer(tool_calls=[call, call], loss=False)], "f:9")
    written = Turn("tool_call", ('{"name": "f", "arguments": {}}',), 0.0)
    assert found == [Turn("assistant", ("A",), 0.0), written, written]


@pytest.mark.parametrize(
    ("messages", "reason", "message"),
    [
        ({}, "wrong type", r"f:9: messages must be a list, got dict"),
        ("text", "not JSON", r"f:9: messages is a string that is not JSON: 'text'"),
        ("'text'", "wrong type", r"f:9: messages must be a list, got str"),
        ([], "no messages", r"f:9: messages is an empty list"),
        (["Hi"], "wrong type", r"f:9: a message must be an object with role and content, got str"),
        ([{"role": "narrator", "content": ""}], "unknown role", r"f:9: unknown role 'narrator'; known: system, user,"),
        ([{"role": ["user"], "content": ""}], "unknown role", r"f:9: unknown role list"),
        ([{"content": ""}], "unknown role", r"f:9: unknown role null"),
        ([{"role": "user", "from": "user"}], "conflicting keys", r"a message has both 'role' and 'from'"),
        ([{"text": "Hi"}], "unknown role", r"a message does not say who speaks; its keys are 'text'; give role and"),
        ([{"human": "Hi"}], "unknown role", r"a message does not say who speaks; its keys are 'human'"),
        ([{"human": "Q", "gpt": "A", "loss": 1}], "unsupported key", r"message key 'loss' is not supported here"),
        ([{"human": None, "gpt": "A"}], "wrong type", r"must be a string or a list, got null"),
        ([_answer(reasoning_content="x")], "unsupported key", r"message key 'reasoning_content' is not supported"),
        ([_answer(audios=["x"])], "unsupported key", r"message key 'audios' is not supported"),
        ([{**ASK, "tool_calls": [1]}], "unsupported key", r"message key 'tool_calls' is not supported here"),
        ([{**ASK, "name": "Bob"}], "unsupported key", r"message key 'name' is not supported here"),
        ([_answer(loss="yes")], "wrong type", r"loss of a message must be true or false, got 'yes'"),
        ([_answer(loss=2)], "wrong type", r"loss of a message must be true or false, got 2"),
        ([_answer(loss=1, weight=1)], "conflicting keys", r"a message has both 'loss' and 'weight'"),
        ([_answer(loss_scale=-1)], "wrong type", r"loss_scale of a message must be a number of at least 0, got -1"),
        ([_answer(loss_scale=True)], "wrong type", r"loss_scale of a message must be a number of .*, got True"),
        ([_answer(loss_scale=float("nan"))], "wrong type", r"loss_scale of a message must be a number"),
        ([_answer(loss_scale=10**400)], "wrong type", r"loss_scale of a message must be a number .*, got int"),
        ([_answer(loss=False, loss_scale=2)], "conflicting keys", r"a message has loss false and loss_scale 2"),
        ([{**ASK, "loss": True}], "loss on a prompt", r"loss on a turn of role user; only what the model writes"),
    ],
)
def test_messages_that_can_not_be_used(messages, reason, message):
    with pytest.raises(RowError, match=message) as caught:
        turns(messages, "f:9")
    assert caught.value.reason == reason
