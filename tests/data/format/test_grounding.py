import pytest

from harness.data.config import BboxScale
from harness.data.format import grounding
from harness.data.row_error import RowError

ASK = {"role": "user", "content": "<image>Find the <ref-object>."}
ANSWER = '[\n\t{"bbox_2d": <bbox>, "label": "<ref-object>"}\n]'


def _row(answer=ANSWER, ask=ASK, images=("a.png",), **objects):
    objects = {"ref": ["sheep", "sheep"], "bbox": [[1, 2, 5, 10]]} | objects
    return {"messages": [ask, {"role": "assistant", "content": answer}], "images": list(images), "objects": objects}


def test_boxes_are_thousandths_in_json_as_the_model_writes_them(read):
    # a.png is 10 wide and 20 high.
    row = read(_row())
    assert row.messages[0].text == "Find the sheep."
    assert row.messages[1].parts == ('[\n\t{"bbox_2d": [100, 100, 500, 500], "label": "sheep"}\n]',)
    written = {"role": "assistant", "content": '[\n\t{"bbox_2d": [100, 100, 500, 500], "label": "sheep"}\n]'}
    assert row == read({"messages": [ASK | {"content": "<image>Find the sheep."}, written], "images": ["a.png"]})


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ({"bbox": [[5, 10, 1, 2]]}, "[100, 100, 500, 500]"),
        ({"bbox": [[9.995, 20.009]]}, "[1000, 1000]"),
        ({"bbox": [[0.1234, 0.5, 0.9996, 1]], "bbox_type": "norm1"}, "[123, 500, 1000, 1000]"),
        ({"bbox": [[0.5, 0.5]], "bbox_type": "norm1", "image_id": [7]}, "[500, 500]"),
        ({"bbox": [[3, 4, 15, 20]], "image_id": [1], "bbox_type": None}, "[100, 100, 500, 500]"),
    ],
)
def test_points_units_and_other_images(objects, expected, read):
    row = read(
        _row(
            answer="<bbox>",
            ask={"role": "user", "content": "<image><image>?"},
            images=("a.png", "b.png"),
            ref=[],
            **objects,
        )
    )
    assert row.messages[1].text == expected


def test_none_leaves_the_numbers(read):
    row = read(_row(answer="<bbox><bbox>", ref=["x"], bbox=[[0.25, 3], [70, 80, 10.5, 20]]), bbox=BboxScale.none)
    assert row.messages[1].text == "[0.25, 3][10.5, 20, 70, 80]"


def test_objects_may_be_the_json_of_a_cell_and_stand_in_any_text(read):
    ask = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "At <bbox>?"}]}
    row = {"messages": [ask, {"role": "assistant", "content": "<ref-object>"}]}
    read_row = read(row | {"objects": '{"ref": ["<image>"], "bbox": [[1, 2]]}'})
    assert [message.text for message in read_row.messages] == ["At [100, 100]?", "<image>"]


def test_no_objects():
    for nothing in (None, "", {}, [], "{}", {"ref": [], "bbox": None}):
        assert grounding.read(nothing, "f:9") == grounding.Objects()


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (
            _row(ref=["sheep"]),
            "unbalanced tags",
            r"f:9: 2 <ref-object> tags for 1 objects\.ref; write one where each",
        ),
        (_row(bbox=[]), "unbalanced tags", r"f:9: 1 <bbox> tags for 0 objects\.bbox"),
        ({"query": "<bbox>", "response": "A"}, "unbalanced tags", r"f:9: 1 <bbox> tags for 0 objects\.bbox"),
        (_row(bbox=[[1, 2, 11, 10]]), "box outside its image", r"box \[1, 2, 11, 10\] is outside its image of 10 x 20"),
        (
            _row(bbox=[[-1, 2]]),
            "box outside its image",
            r"box \[-1, 2\] is outside its image of 10 x 20 pixels; give x1",
        ),
        (_row(bbox=[[1, 2]], bbox_type="norm1"), "box outside its image", r"outside 0 to 1 \(bbox_type norm1\)"),
        (_row(image_id=[1]), "box outside its image", r"a box lies in image 1 and the row shows 1; image_id counts"),
        (_row(image_id=[-1]), "box outside its image", r"a box lies in image -1 and the row shows 1"),
        (_row(image_id=[0, 0]), "wrong type", r"image_id of objects must be one integer for each of the 1 boxes"),
        (_row(image_id=[0.0]), "wrong type", r"image_id of objects must be one integer"),
        (_row(image_id=3), "wrong type", r"image_id of objects must be a list, got int"),
        (_row(bbox=[[1, 2, 3]]), "wrong type", r"each bbox of objects must be a list of 2 or 4 numbers"),
        (_row(bbox=[[1, "2"]]), "wrong type", r"each bbox of objects must be a list of 2 or 4 numbers"),
        (_row(bbox=[[1, True]]), "wrong type", r"each bbox of objects must be a list of 2 or 4 numbers"),
        (_row(bbox=[[10**400, float("inf")]]), "wrong type", r"each bbox of objects must be a list of 2 or 4 numbers"),
        (_row(bbox=5), "wrong type", r"bbox of objects must be a list, got int"),
        (_row(ref="sheep"), "wrong type", r"ref of objects must be a list, got str"),
        (_row(ref=[1, 2]), "wrong type", r"a ref of objects must be a string, got int"),
        (_row(bbox_type="norm1000"), "wrong type", r"bbox_type 'norm1000' is unknown; real .* data\.bbox=none"),
        (_row() | {"objects": [1]}, "wrong type", r"objects must be an object with ref and bbox, got list"),
        (_row() | {"objects": "x"}, "not JSON", r"objects is a string that is not JSON"),
    ],
)
def test_objects_that_can_not_be_used(row, reason, message, read):
    with pytest.raises(RowError, match=message) as caught:
        read(row)
    assert caught.value.reason == reason


def test_a_row_without_images_has_no_pixels(read):
    row = _row(answer="<bbox>", ask={"role": "user", "content": "?"}, images=(), ref=[])
    with pytest.raises(RowError, match=r"a box lies in image 0 and the row shows 0"):
        read(row)


def test_a_box_in_a_broken_image_names_the_image(read, media_folder):
    (media_folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(RowError, match=r"f:9: image .*broken\.png"):
        read(_row(images=("broken.png",)))
