import base64
import io
import json

import pytest

from harness.data.format.canonical import RowFormat
from harness.data.media.reference import MediaPolicy
from harness.data.row import Media, Message
from harness.data.row_error import RowError
from harness.errors import UserError

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "<image>What is it?"}
ANSWER = {"role": "assistant", "content": "A cat."}
ROUND = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CALL = '{"name": "aqi", "arguments": {"city": "Beijing"}}'
TOOL = {"type": "function", "function": {"name": "aqi", "parameters": {"type": "object"}}}
CALLS = [{"role": "user", "content": "Air?"}, {"role": "tool_call", "content": CALL}]
CALLS += [{"role": "tool_response", "content": '{"aqi": 10}'}, ANSWER]
WORSE = {"role": "assistant", "content": "A dog."}


def _messages(*messages, **more):
    return {"messages": list(messages), **more}


CHAT = _messages(SYSTEM, *ROUND, ASK, ANSWER, images=["a.png"])
PAIR = _messages({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
AGENT = _messages(*CALLS, tools=[TOOL])
BETTER = _messages(SYSTEM, ASK, ANSWER, images=["a.png"], rejected_response="A dog.")
SYSTEM_KEYS = {"system": "Be brief.", "images": ["a.png"]}
OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "aqi", "arguments": '{"city": "Beijing"}'}}
FORMATS = {
    "conversations": ({"conversations": CHAT["messages"], "images": ["a.png"]}, CHAT),
    "conversation": ({"conversation": CHAT["messages"], "image": "a.png"}, CHAT),
    "messages as JSON": ({**CHAT, "messages": json.dumps(CHAT["messages"])}, CHAT),
    "messages as Python": ({**CHAT, "messages": repr(CHAT["messages"]), "images": '["a.png"]'}, CHAT),
    "system key": ({**SYSTEM_KEYS, "messages": CHAT["messages"][1:]}, CHAT),
    "system key and message": ({**CHAT, "system": "Be brief."}, CHAT),
    "another case": ({"Messages": CHAT["messages"], "Image": ["a.png"]}, CHAT),
    "null keys and metadata": (
        {**CHAT, "id": 7, "source": {"a": [1]}, "videos": None, "tools": [], "objects": ""},
        CHAT,
    ),
    "OpenAI parts": (
        _messages(
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            *ROUND,
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
                    {"type": "text", "text": "What "},
                    {"type": "text", "text": "is it?"},
                ],
            },
            ANSWER | {"refusal": None, "tool_calls": []},
        ),
        CHAT,
    ),
    "parts that take the next image": (
        _messages(
            SYSTEM,
            *ROUND,
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?", "image": None}]},
            ANSWER,
            images={"path": "a.png"},
        ),
        CHAT,
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "user", "value": "<image>What is it?"},
                {"from": "chatgpt", "value": "A cat."},
            ],
            "image": "a.png",
        },
        CHAT,
    ),
    "sharegpt pairs": (
        {
            **SYSTEM_KEYS,
            "conversation": [
                {"human": "Hi", "assistant": "Hello"},
                {"user": "<image>What is it?", "gpt": "A cat."},
            ],
        },
        CHAT,
    ),
    "query": (
        {**SYSTEM_KEYS, "history": [["Hi", "Hello"]], "query": "<image>What is it?", "response": "A cat."},
        CHAT,
    ),
    "query as a table has it": (
        {
            "system_prompt": "Be brief.",
            "history": "[['Hi', 'Hello']]",
            "question": "<image>What is it?",
            "query": None,
            "answer": ["A cat.", "Cat"],
            "image": "a.png",
        },
        CHAT,
    ),
    "history alone": ({"history": [["Q", None], [None, "A"]]}, PAIR),
    **{
        f"{query} and {response}": ({query: "Q", response: "A", "other": 1}, PAIR)
        for query, response in (
            *(("prompt", "completion"), ("instruction", "output"), ("input", "target"), ("problem", "solution")),
            *(("Question", "Answer"), ("query", "answers"), ("query", "answer_key"), ("query", "targets")),
            *(("query", "text"), ("query", "content")),
        )
    },
    "alpaca": (
        {"system": "Be brief.", "instruction": "Translate", "input": "chat", "output": "cat", "text": "All of it"},
        _messages(SYSTEM, {"role": "user", "content": "Translate\nchat"}, {"role": "assistant", "content": "cat"}),
    ),
    "alpaca without input": ({"instruction": "Q", "input": "", "output": "A"}, PAIR),
    "alpaca without instruction": ({"instruction": "", "input": "Q", "response": "A"}, PAIR),
    "answer alone": ({"response": "A"}, _messages({"role": "assistant", "content": "A"})),
    "OpenAI calls": (
        {
            "messages": [
                CALLS[0],
                {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                {"role": "tool", "tool_call_id": "1", "name": "aqi", "content": '{"aqi": 10}'},
                ANSWER,
            ],
            "tools": [TOOL],
        },
        AGENT,
    ),
    "OpenAI functions": (
        {
            "messages": [
                CALLS[0],
                {"role": "assistant", "content": "", "function_call": OPENAI_CALL["function"]},
                {"role": "function", "name": "aqi", "content": '{"aqi": 10}'},
                ANSWER,
            ],
            "functions": [TOOL["function"]],
        },
        AGENT,
    ),
    "sharegpt calls": (
        {
            "conversations": [
                {"from": "human", "value": "Air?"},
                {"from": "function_call", "value": {"name": "aqi", "arguments": {"city": "Beijing"}}},
                {"from": "observation", "value": {"aqi": 10}},
                {"from": "gpt", "value": "A cat."},
            ],
            "tools": json.dumps([TOOL]),
        },
        AGENT,
    ),
    "rejected messages": (
        _messages(
            *(SYSTEM, ASK, ANSWER), images="a.png", rejected_messages=[SYSTEM, ASK, WORSE], rejected_images=["a.png"]
        ),
        BETTER,
    ),
    "rejected turns": ({**BETTER, "rejected_response": [WORSE]}, BETTER),
    "rejected answer of a query": (
        {**SYSTEM_KEYS, "query": "<image>What is it?", "response": "A cat.", "rejected_response": "A dog."},
        BETTER,
    ),
    "label 0": ({"query": "Q", "response": "A", "label": 0}, {**PAIR, "label": False}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_equals_its_messages(name, read):
    row, messages = FORMATS[name]
    assert read(row) == read(messages)


def test_the_messages_of_the_matrix_are_what_they_say(read):
    row = read(CHAT)
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert row.messages[3] == Message("user", (Media.image, "What is it?"))
    assert [image.size() for image in row.images] == [(20, 10)]
    assert (row.origin, row.plain, row.tools, row.rejected, row.label) == ("f:9", False, (), None, None)
    assert [message.role for message in read(AGENT).messages] == ["user", "tool_call", "tool_response", "assistant"]
    assert read(AGENT).messages[1].text == CALL and read(AGENT).tools == (TOOL,)


def test_only_text_alone_is_plain(read):
    row = read({"text": "<image>A cat.", "image": "a.png", "title": "Cats", "query": ""})
    assert row.plain and row.messages == (Message("assistant", (Media.image, "A cat.")),)
    assert not read({"text": "Hi", "system": "Be brief."}).plain
    assert not read(_messages(ANSWER)).plain


def test_keys_beside_the_conversation(read):
    row = read({**PAIR, "channel": "math", "min_pixels": 4096, "max_pixels": 8192, "label": True})
    assert (row.channel, row.min_pixels, row.max_pixels, row.label) == ("math", 4096, 8192, True)


def test_images_in_all_their_forms(read, media_folder):
    content = (media_folder / "a.png").read_bytes()
    text = base64.b64encode(content).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "text", "text": "<image><image><image>"},
    ]
    images = [{"bytes": content, "path": None}, {"bytes": text}, {"bytes": None, "path": "a.png"}]
    row = read(_messages({"role": "user", "content": parts}, ANSWER, images=images))
    assert [image.size() for image in row.images] == [(20, 10)] * 4
    assert [image.load().tobytes() for image in row.images] == [row.images[0].load().tobytes()] * 4


def test_bytes_that_are_no_image_fail_when_looked_at(read):
    entry = {"bytes": base64.b64encode(io.BytesIO(b"no image").getvalue()).decode()}
    with pytest.raises(UserError, match=r"f:9: image in the row can not be opened: not one of BMP, GIF, JPEG"):
        read(_messages(ASK, ANSWER, images=[entry])).images[0].size()


@pytest.mark.parametrize(
    ("raw", "reason", "message"),
    [
        ([], "wrong type", r"^f:9: a row must be an object, got list; JSONL"),
        ({}, "unknown format", r"f:9: the row has no messages; its keys are none; give messages, query"),
        ({"id": 1, "x": 2}, "unknown format", r"its keys are 'id', 'x'; give"),
        ({**CHAT, "system": "Be long."}, "conflicting keys", r"system key and a system message that differ"),
        ({**CHAT, "system": 3}, "wrong type", r"f:9: system must be a string, got int"),
        ({"text": ""}, "no messages", r"f:9: text is empty"),
        ({"text": 3}, "wrong type", r"f:9: text must be a string, got int"),
        ({"text": "Hi", "tools": [TOOL]}, "conflicting keys", r"pre-training text has no tools and no rejected"),
        ({"text": "Hi", "rejected_response": "Ho"}, "conflicting keys", r"pre-training text has no tools and no rej"),
        ({**PAIR, "channel": 3}, "wrong type", r"f:9: channel must be a string, got int"),
        ({**PAIR, "label": "cat"}, "wrong type", r"f:9: label must be true or false, got 'cat'; .* data\.columns"),
        ({**PAIR, "label": 2}, "wrong type", r"f:9: label must be true or false, got 2"),
        ({**PAIR, "min_pixels": 0}, "wrong type", r"min_pixels must be an integer of at least 1, got 0"),
        ({**PAIR, "max_pixels": True}, "wrong type", r"max_pixels must be an integer of at least 1, got True"),
        ({**PAIR, "max_pixels": 10**5000}, "wrong type", r"max_pixels must be an integer of at least 1, got int"),
        ({**PAIR, "min_pixels": 9, "max_pixels": 8}, "wrong type", r"min_pixels 9 is over max_pixels 8"),
        ({**PAIR, "min_pixels": 10**9}, "wrong type", r"min_pixels 1000000000 is over data\.image\.max_pixels_decoded"),
    ],
)
def test_rows_that_can_not_be_used_name_their_line(raw, reason, message, read):
    with pytest.raises(RowError, match=message) as caught:
        read(raw)
    assert caught.value.reason == reason


def test_columns_are_checked_before_any_row(tmp_path):
    with pytest.raises(UserError, match=r"data\.columns\.q=querry: is no key of a row; known: .*query"):
        RowFormat(MediaPolicy(base=tmp_path), {"q": "querry"}, None)
