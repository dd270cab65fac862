import base64
import io

import pytest

from harness.data.row import canonical
from harness.errors import UserError

ANSWER = {"role": "assistant", "content": "Yes."}


@pytest.fixture
def folder(tmp_path, picture):
    for name, size in {"a.png": (10, 20), "b.png": (30, 40)}.items():
        picture(*size).save(tmp_path / name)
    return tmp_path


def _user(content):
    return {"role": "user", "content": content}


def _sizes(row):
    return [image.size() for image in row.images]


def test_tags_take_the_images_in_order(folder):
    row = canonical({"messages": [_user("<image>one<image>"), ANSWER], "images": ["a.png", "b.png"]}, "f:1", folder)
    assert row.messages[0].parts == (None, "one", None)
    assert row.messages[0].text == "one"
    assert _sizes(row) == [(20, 10), (40, 30)]
    assert row.origin == "f:1"


def test_content_lists_name_their_images_or_take_the_next(folder):
    parts = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "and"}, {"type": "image"}]
    row = canonical({"messages": [_user(parts), ANSWER], "images": ["a.png"]}, "f:1", folder)
    assert row.messages[0].parts == (None, "and", None)
    assert _sizes(row) == [(40, 30), (20, 10)]


def test_data_addresses_and_bytes(folder):
    content = (folder / "a.png").read_bytes()
    text = base64.b64encode(content).decode()
    address = f"data:image/png;base64,{text}"
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "<image><image><image>"}]
    images = [{"bytes": content, "path": None}, {"bytes": text}, {"bytes": None, "path": "a.png"}]
    row = canonical({"messages": [_user(parts), ANSWER], "images": images}, "f:1", folder)
    assert _sizes(row) == [(20, 10)] * 4
    assert [image.load().tobytes() for image in row.images] == [row.images[0].load().tobytes()] * 4


def test_text_rows_and_keys_without_meaning_are_fine(folder):
    raw = {"messages": [{"role": "system", "content": ""}, _user("Hi"), ANSWER | {"name": None}], "id": 3, "videos": []}
    row = canonical(raw, "f:1", folder)
    assert row.images == () and [message.text for message in row.messages] == ["", "Hi", "Yes."]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], r"f:9: a row must be an object, got list"),
        ({"conversations": []}, r"f:9: the row has no list of messages; its keys are conversations"),
        ({"messages": []}, r"f:9: the row has no list of messages"),
        ({"messages": ["Hi"]}, r"f:9: a message must be an object with role and content, got str"),
        (
            {"messages": [{"role": "human", "content": ""}]},
            r"f:9: unknown role 'human'; known: system, user, assistant",
        ),
        ({"messages": [{"content": ""}]}, r"f:9: unknown role None"),
        ({"messages": [_user("Hi")]}, r"f:9: no assistant turn"),
        ({"messages": [_user(None), ANSWER]}, r"f:9: the content of a message must be a string or a list, got null"),
        ({"messages": [_user({"a": 1}), ANSWER]}, r"f:9: the content .* got dict"),
        ({"messages": [_user([{"type": "video", "video": "v"}]), ANSWER]}, r"f:9: content part .*'video'.* can not be"),
        ({"messages": [_user(["Hi"]), ANSWER]}, r"f:9: content part 'Hi' can not be used"),
        ({"messages": [_user("Hi"), ANSWER | {"loss": False}]}, r"f:9: message key 'loss' is not supported"),
        ({"messages": [_user("Hi"), ANSWER], "videos": ["v.mp4"]}, r"f:9: 'videos' is not supported"),
        ({"messages": [_user("<image>"), ANSWER]}, r"f:9: 1 <image> tags for 0 images"),
        ({"messages": [_user("Hi"), ANSWER], "images": ["a.png"]}, r"f:9: 0 <image> tags for 1 images"),
        ({"messages": [_user("Hi"), ANSWER], "images": {"a": 1}}, r"f:9: images must be a list, got dict"),
        (
            {"messages": [_user("Hi"), {"role": "assistant", "content": "<image>"}]},
            r"f:9: an image in an assistant turn",
        ),
    ],
)
def test_rows_that_can_not_be_used_name_their_line(raw, message, tmp_path):
    with pytest.raises(UserError, match=message):
        canonical(raw, "f:9", tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gone.png", r"f:9: image 'gone\.png' does not exist"),
        (".", r"f:9: image '\.' does not exist"),
        ("x" * 5000, r"f:9: image 'x{200}'? "),
        ("https://example.com/a.png", r"f:9: image 'https://example\.com/a\.png' is a web address; download it"),
        ("data:image/png;base64,%%%", r"f:9: an image given as data is not base64"),
        ({"bytes": 7}, r"f:9: an image given as data is not base64"),
        ({"path": None}, r"f:9: an image must be a path, a data URI"),
        (7, r"f:9: an image must be a path, a data URI"),
    ],
)
def test_images_that_can_not_be_used_name_their_line(entry, message, tmp_path):
    with pytest.raises(UserError, match=message):
        canonical({"messages": [_user("<image>"), ANSWER], "images": [entry]}, "f:9", tmp_path)


def test_bytes_that_are_no_image_fail_when_looked_at(tmp_path):
    entry = {"bytes": base64.b64encode(io.BytesIO(b"no image").getvalue()).decode()}
    row = canonical({"messages": [_user("<image>"), ANSWER], "images": [entry]}, "f:9", tmp_path)
    with pytest.raises(UserError, match=r"f:9: image in the row can not be opened: not one of BMP, GIF, JPEG"):
        row.images[0].size()
