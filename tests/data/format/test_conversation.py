import pytest

from harness.data.row import Media
from harness.data.row_error import RowError

ANSWER = {"role": "assistant", "content": "Yes."}


def _user(content):
    return {"role": "user", "content": content}


def test_tags_take_the_images_in_order(read):
    row = read({"messages": [_user("<image>one<image>"), ANSWER], "images": ["a.png", "b.png"]})
    assert row.messages[0].parts == (Media.image, "one", Media.image)
    assert row.messages[0].text == "one"
    assert [image.size() for image in row.images] == [(20, 10), (40, 30)]


def test_without_any_tag_images_stand_before_the_first_question(read):
    turns = [{"role": "system", "content": "Be brief."}, _user("One?"), ANSWER, _user("Two?"), ANSWER]
    row = read({"messages": turns, "images": ["a.png", "b.png"]})
    tagged = [turns[0], _user("<image><image>One?"), *turns[2:]]
    assert row == read({"messages": tagged, "images": ["a.png", "b.png"]})


def test_images_named_in_the_content_stand_between_those_of_the_list(read):
    parts = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "and"}, {"type": "image"}]
    row = read({"messages": [_user(parts), ANSWER], "images": ["a.png"]})
    assert row.messages[0].parts == (Media.image, "and", Media.image)
    assert [image.size() for image in row.images] == [(40, 30), (20, 10)]


def test_images_and_videos_are_counted_apart(read, media_folder):
    row = read(
        {
            "messages": [_user("<video>x<image><video>"), ANSWER],
            "images": "a.png",
            "videos": ["a.mp4", ["a.png", "b.png"]],
        }
    )
    assert row.messages[0].parts == (Media.video, "x", Media.image, Media.video)
    assert row.videos[0].source == str(media_folder / "a.mp4")
    assert [frame.size() for frame in row.videos[1].source] == [(20, 10), (40, 30)]
    assert len(row.images) == 1


def test_results_of_tools_may_show_images(read):
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    row = read(
        {
            "messages": [_user("<image>?"), call, {"role": "tool", "content": {"shot": "<image>"}}, ANSWER],
            "images": ["a.png", "b.png"],
        }
    )
    assert row.messages[2].parts == ('{"shot": "', Media.image, '"}')


@pytest.mark.parametrize(
    ("raw", "reason", "message"),
    [
        ({"messages": [_user("Hi")]}, "no assistant turn", r"f:9: no assistant turn in the row"),
        ({"messages": [_user("<image>"), ANSWER]}, "unbalanced tags", r"f:9: 1 <image> tags for 0 images; write one"),
        (
            {"messages": [_user("<image>"), ANSWER], "images": ["a.png", "b.png"]},
            "unbalanced tags",
            r"f:9: 1 <image> tags for 2 ima",
        ),
        ({"messages": [_user("<video>"), ANSWER]}, "unbalanced tags", r"f:9: 1 <video> tags for 0 videos"),
        ({"text": "<image>"}, "unbalanced tags", r"f:9: 1 <image> tags for 0 images"),
        (
            {"messages": [_user("Hi"), {"role": "assistant", "content": "<image>"}], "images": ["a.png"]},
            "media in an answer",
            r"f:9: an image in an assistant turn; the model writes text only, .* pre-training text as 'text'",
        ),
        (
            {"messages": [_user("Hi"), {"role": "tool_call", "content": "<video>"}], "videos": ["a.mp4"]},
            "media in an answer",
            r"f:9: a video in an assistant turn",
        ),
        (
            {"messages": [_user("<image>"), ANSWER], "images": ["gone.png"]},
            "missing image",
            r"f:9: image 'gone\.png' does",
        ),
        ({"messages": [_user("<image>"), ANSWER], "images": [None]}, "wrong type", r"f:9: a[n]? image must be a path"),
        ({"messages": [_user("<image>"), ANSWER], "images": ["x" * 5000]}, "missing image", r"f:9: image 'x{200}'? "),
        ({"messages": [_user("<image>"), ANSWER], "images": ["."]}, "missing image", r"f:9: image '\.' does not exist"),
        ({"messages": [_user("<image>"), ANSWER], "images": 7}, "wrong type", r"f:9: a[n]? image must be a path"),
        ({"messages": [_user("<video>"), ANSWER], "videos": [{}]}, "wrong type", r"f:9: a video must be a path"),
    ],
)
def test_rows_that_can_not_be_used(raw, reason, message, read):
    with pytest.raises(RowError, match=message) as caught:
        read(raw)
    assert caught.value.reason == reason
