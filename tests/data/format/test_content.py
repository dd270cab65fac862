import pytest

from harness.data.format.content import pieces, split
from harness.data.format.turn import Mark, Place
from harness.data.row import Media
from harness.data.row_error import RowError

IMAGE, VIDEO = Place(Media.image), Place(Media.video)


def test_tags_split_a_text():
    expected = (IMAGE, "a", VIDEO, IMAGE, Mark.ref, " at ", Mark.box, "<audio> < b")
    assert split("<image>a<video><image><ref-object> at <bbox><audio> < b") == expected
    assert split("") == () and split("a") == ("a",)


def test_parts_name_their_media_or_take_the_next():
    parts = [
        {"type": "image", "image": "b.png"},
        {"type": "image_url", "image_url": "c.png"},
        {"type": "video_url", "video_url": {"url": "v.mp4"}},
        {"type": "video", "video": ["1.png", "2.png"], "fps": 2.0},
        {"type": "text", "text": "and <image>"},
        {"type": "image"},
    ]
    assert pieces(parts, "user", "f:9") == (
        *(Place(Media.image, "b.png"), Place(Media.image, "c.png"), Place(Media.video, "v.mp4")),
        Place(Media.video, {"video": ["1.png", "2.png"], "fps": 2.0}),
        *("and ", IMAGE, IMAGE),
    )


def test_what_tools_are_asked_and_answer_may_be_objects():
    assert pieces({"a": "é<image>"}, "tool_response", "f:9") == ('{"a": "é', IMAGE, '"}')
    assert pieces([{"a": 1}], "tool_call", "f:9") == ('[{"a": 1}]',)
    assert pieces([], "tool_response", "f:9") == ("[]",)
    assert pieces([{"type": "text", "text": "x"}], "tool_response", "f:9") == ("x",)


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (None, "wrong type", r"f:9: the content of a message must be a string or a list, got null"),
        (3, "wrong type", r"must be a string or a list, got int"),
        ({"a": 1}, "wrong type", r"must be a string or a list, got dict"),
        ("\ud800", "broken text", r"the content of a message contains '\\ud800'"),
        (["Hi"], "wrong type", r"a content part 'Hi' can not be used; parts are objects of type text"),
        ([{"text": "Hi"}], "wrong type", r"a content part of type null can not be used"),
        ([{"type": "input_audio", "input_audio": "x"}], "wrong type", r"a content part of type 'input_audio' can not"),
        ([{"type": "text", "text": 3}], "wrong type", r"the text of a content part must be a string, got int"),
        ([{"type": "image", "image": "a", "max_pixels": 9}], "unsupported key", r"'max_pixels' of a content part of t"),
        ([{"type": "image", "image": "a", "fps": 9}], "unsupported key", r"'fps' of a content part of type image"),
    ],
)
def test_contents_that_can_not_be_used(value, reason, message):
    with pytest.raises(RowError, match=message) as caught:
        pieces(value, "user", "f:9")
    assert caught.value.reason == reason


def test_scalars_of_tools_are_refused():
    with pytest.raises(RowError, match=r"must be a string or a list, got float"):
        pieces(4.2, "tool_response", "f:9")
