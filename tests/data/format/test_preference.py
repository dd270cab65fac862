import pytest

from harness.data.row_error import RowError

ASK = {"role": "user", "content": "<image>What is it?"}
GOOD = {"role": "assistant", "content": "A cat."}
BAD = {"role": "assistant", "content": "A dog."}
CALL = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
RESULT = {"role": "tool_response", "content": "Sunny"}
TOOL = {"type": "function", "function": {"name": "f"}}


def _row(*messages, **more):
    return {"messages": list(messages or (ASK, GOOD)), "images": ["a.png"], **more}


def _said(row):
    return [(message.role, message.text) for message in row.rejected.messages]


def test_a_response_replaces_the_last_answer(read):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = read(_row(*earlier, ASK, GOOD, rejected_response="A dog."))
    assert _said(row) == [("user", "Hi"), ("assistant", "Hello"), ("user", "What is it?"), ("assistant", "A dog.")]
    assert row.rejected.images == row.images
    assert row.rejected.messages[2] == row.messages[2]


def test_a_response_replaces_calls_and_their_results(read):
    row = read(_row(ASK, CALL, RESULT, GOOD, rejected_response="Unknown", tools=[TOOL]))
    assert _said(row) == [("user", "What is it?"), ("assistant", "Unknown")]
    row = read(_row(ASK, GOOD, rejected_response=[CALL, RESULT, BAD]))
    assert [role for role, _ in _said(row)] == ["user", "tool_call", "tool_response", "assistant"]


def test_a_response_without_a_prompt(read):
    row = read({"messages": [{"role": "system", "content": "S"}, GOOD], "rejected_response": "A dog."})
    assert _said(row) == [("system", "S"), ("assistant", "A dog.")]


def test_other_images_make_the_same_answer_worse(read):
    row = read(_row(rejected_images=["b.png"]))
    assert row.rejected.messages == row.messages
    assert [image.size() for image in row.rejected.images] == [(40, 30)]
    row = read(_row(rejected_response="A dog.", rejected_images="b.png"))
    assert _said(row)[-1] == ("assistant", "A dog.") and row.rejected.images[0].size() == (40, 30)


def test_other_videos_make_the_same_answer_worse(read):
    row = {"query": "<video>?", "response": "A", "videos": ["a.mp4"], "rejected_videos": [["a.png", "b.png"]]}
    assert len(read(row).rejected.videos[0].source) == 2


def test_whole_conversations_bring_their_own_media(read):
    other = [{"role": "user", "content": "What?"}, BAD]
    row = read(_row(rejected_messages=other, rejected_tools=[TOOL], tools=[TOOL]))
    assert _said(row) == [("user", "What?"), ("assistant", "A dog.")]
    assert row.rejected.images == ()


def test_a_system_key_stands_for_both(read):
    row = read({"messages": [GOOD], "system": "S", "rejected_messages": [BAD]})
    assert _said(row) == [("system", "S"), ("assistant", "A dog.")]
    row = read({"messages": [GOOD], "system": "S", "rejected_messages": [{"role": "system", "content": "T"}, BAD]})
    assert _said(row) == [("system", "T"), ("assistant", "A dog.")]


def test_objects_are_written_into_both(read):
    objects = {"ref": [], "bbox": [[1, 2]]}
    box = {"role": "assistant", "content": "<bbox>"}
    row = read(_row(ASK, box, objects=objects, rejected_response="At <bbox>"))
    assert (row.messages[1].text, row.rejected.messages[1].text) == ("[100, 100]", "At [100, 100]")
    row = read(_row(ASK, box, objects=objects, rejected_objects={"bbox": [[2, 2]]}))
    assert row.rejected.messages[1].text == "[200, 100]"
    row = read(_row(ASK, box, objects=objects, rejected_messages=[ASK, BAD], rejected_images=["a.png"]))
    assert row.rejected.messages[1].text == "A dog."


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (_row(rejected_response="A cat."), "rejected equals chosen", r"f:9: the rejected answer equals the chosen one"),
        (_row(rejected_images=["a.png"]), "rejected equals chosen", r"f:9: the rejected answer equals the chosen one"),
        (_row(rejected_response=3), "wrong type", r"rejected_response must be a list, got int"),
        (_row(rejected_response=[ASK, BAD]), "wrong type", r"rejected_response has a user or system turn; give whole"),
        (_row(rejected_response=[RESULT]), "no assistant turn", r"no assistant turn in rejected_messages"),
        (_row(rejected_response="<image>"), "media in an answer", r"an image in an assistant turn"),
        (_row(rejected_messages=[ASK, BAD]), "unbalanced tags", r"1 <image> tags for 0 rejected_images"),
        (_row(rejected_messages="x"), "not JSON", r"rejected_messages is a string that is not JSON"),
        (
            _row(rejected_messages=[BAD], rejected_response="B"),
            "conflicting keys",
            r"the row has both rejected_messages and rejected_response",
        ),
        (
            _row(rejected_response="B", rejected_tools=[TOOL]),
            "unsupported key",
            r"rejected_tools are not the row's tools",
        ),
        (_row(rejected_images=["gone.png"]), "missing image", r"f:9: image 'gone\.png' does not exist"),
        (_row(rejected_objects={"bbox": [[1, 1]]}), "unbalanced tags", r"0 <bbox> tags for 1 rejected_objects\.bbox"),
    ],
)
def test_rows_that_can_not_be_used(row, reason, message, read):
    with pytest.raises(RowError, match=message) as caught:
        read(row)
    assert caught.value.reason == reason


def test_pictures_in_memory_are_not_decoded_to_be_compared(read, picture):
    picture_in_memory = picture(4, 4)
    row = {"messages": [ASK, GOOD], "images": [picture_in_memory], "rejected_images": [picture_in_memory]}
    with pytest.raises(RowError, match="equals the chosen one"):
        read(row)
    assert read(row | {"rejected_images": [picture(4, 4)]}).rejected is not None
