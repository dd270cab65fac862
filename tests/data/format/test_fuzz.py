"""Random rows: broken ones raise RowError and nothing else, good ones are the same in every format."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data.config import BboxScale
from harness.data.format import keys, messages
from harness.data.row import Row
from harness.data.row_error import RowError

FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
WORDS = (
    *("<image>", "<video>", "<bbox>", "<ref-object>", "a.png", "a.mp4", "gone.png", "", "\ud800", "[", "{}", "[[1]]"),
    *("data:image/png;base64,AA==", "http://[", "file://[", "~x/\0", "image", "image_url", "text", "video", "real"),
    *messages.ROLE_OF,
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from(WORDS), st.text(max_size=8)),
    *(st.floats(), st.sampled_from((400, 5000)).map(lambda digits: -(10**digits)), st.binary(max_size=4)),
)
INNER_KEYS = st.sampled_from(
    (
        *("role", "from", "content", "value", "loss", "loss_scale", "weight", "tool_calls", "function_call", "name"),
        *("arguments", "function", "id", "tool_call_id", "type", "text", "image", "image_url", "video", "url", "path"),
        *("bytes", "frames", "fps", "ref", "bbox", "bbox_type", "image_id", "human", "assistant", "user", "other"),
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER_KEYS, inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(sorted(keys.KNOWN)) | st.text(max_size=3), VALUES, max_size=6)
"""Known keys with values of any type."""
ROLE_NAMES = st.sampled_from(list(messages.ROLE_OF))
NEARLY = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": ROLE_NAMES, "content": VALUES}), max_size=4)},
    optional=dict.fromkeys(("images", "videos", "tools", "objects", "system", "label", "rejected_response"), VALUES),
)
"""Rows that come further: their messages have roles."""


@FUZZ
@given(raw=ROWS | NEARLY | VALUES, scale=st.sampled_from(BboxScale))
def test_broken_rows_raise_row_errors_and_nothing_else(raw, scale, read):
    try:
        row = read(raw, bbox=scale)
    except RowError as error:
        assert str(error).startswith("f:9: ") and error.reason and len(error.reason) < 30
        str(error).encode()  # can be printed
    else:
        assert isinstance(row, Row) and row.messages


@FUZZ
@given(raw=VALUES, column=st.sampled_from(["a", "messages"]), key=st.sampled_from(sorted(keys.TARGETS)))
def test_renamed_values_raise_row_errors_and_nothing_else(raw, column, key, read):
    try:
        read({"a": raw, "messages": raw}, **{column: key})
    except RowError as error:
        assert error.origin == "f:9"


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"content": inner}])
def test_deep_values_raise_row_errors_and_nothing_else(wrap, read):
    deep = wrap(None)
    for _ in range(50_000):
        deep = wrap(deep)
    turns = [{"role": "assistant", place: deep} for place in ("content", "tool_calls", "function_call", "loss", "x")]
    turns += [{"role": "tool", "content": deep}, {"role": deep, "content": ""}, deep]
    for raw in (*({key: deep} for key in keys.KNOWN), *({"messages": [turn]} for turn in turns), deep):
        with pytest.raises(RowError):
            read(raw)


SAID = st.text(max_size=20).filter(lambda text: "<" not in text and text.strip())
ROUNDS = st.lists(st.tuples(SAID, SAID, st.booleans()), min_size=1, max_size=3)


def _asked(question, shows):
    return f"<image>{question}" if shows else question


def _formats(system, rounds):
    """Yields the same conversation in every format, the messages first."""
    images = ["a.png"] * sum(shows for _, _, shows in rounds)
    pairs = [(_asked(question, shows), answer) for question, answer, shows in rounds]
    said = [message for pair in pairs for message in zip(("user", "assistant"), pair, strict=True)]
    listed = [("system", system)] * (system is not None) + said
    yield {"messages": [{"role": role, "content": text} for role, text in listed], "images": images}
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    yield {"conversations": [{"from": names[role], "value": text} for role, text in listed], "image": images}
    yield {"messages": json.dumps([{"role": role, "content": text} for role, text in listed]), "images": images}
    parts = [
        {
            "role": role,
            "content": [{"type": "image_url", "image_url": {"url": "a.png"}}] * text.startswith("<image>")
            + [{"type": "text", "text": text.removeprefix("<image>")}],
        }
        for role, text in listed
    ]
    yield {"messages": parts}
    with_system = {"images": images} | ({} if system is None else {"system": system})
    yield {"conversation": [{"human": query, "assistant": answer} for query, answer in pairs], **with_system}
    last = {"query": pairs[-1][0], "response": pairs[-1][1], "history": pairs[:-1], **with_system}
    yield last
    yield last | {"history": json.dumps(pairs[:-1])}
    first, *rest = last["query"].split("\n")
    if first and rest and "\n".join(rest):
        halves = {"instruction": first, "input": "\n".join(rest), "output": last["response"]}
        yield {"history": pairs[:-1], **halves, **with_system}


@FUZZ
@given(system=st.none() | SAID, rounds=ROUNDS)
def test_good_rows_are_the_same_in_every_format(system, rounds, read):
    rows = [read(raw) for raw in _formats(system, rounds)]
    assert all(row == rows[0] for row in rows)
    assert [message.text for message in rows[0].messages if message.role == "assistant"] == [
        said for _, said, _ in rounds
    ]
    assert len(rows[0].images) == sum(shows for _, _, shows in rounds)


JSON_OBJECTS = st.dictionaries(
    SAID, st.recursive(st.none() | st.booleans() | st.integers() | SAID, lambda inner: st.lists(inner), max_leaves=4)
)


@FUZZ
@given(names=st.lists(SAID, min_size=1, max_size=3), arguments=JSON_OBJECTS, order=st.randoms(use_true_random=False))
def test_calls_are_the_same_in_every_format(names, arguments, order, read):
    calls = [{"name": name, "arguments": arguments} for name in names]
    texts = [json.dumps(call, ensure_ascii=False) for call in calls]
    results = [{"role": "tool", "tool_call_id": str(index), "content": str(index)} for index in range(len(names))]
    canonical = [
        *({"role": "tool_call", "content": text} for text in texts),
        *({"role": "tool_response", "content": result["content"]} for result in results),
    ]
    openai = [{"id": str(index), "type": "function", "function": call} for index, call in enumerate(calls)]
    order.shuffle(results)
    assert read({"messages": [{"role": "assistant", "content": None, "tool_calls": openai}, *results]}) == read(
        {"messages": canonical}
    )
    assert [json.loads(message.text) for message in read({"messages": canonical}).messages[: len(names)]] == calls
