import pytest

from harness.data.media.image import ImageRef
from harness.data.row import Media, Message, Row
from harness.doctor import boxes
from harness.doctor.boxes import Boxes, find

SIZE = (480, 640)


def make_row(text: str, origin: str = "rows.jsonl:1", images: int = 1) -> Row:
    shown = tuple(ImageRef("x.png", origin) for _ in range(images))
    asked = Message("user", (*[Media.image] * images, "Where?"))
    return Row(messages=(asked, Message("assistant", (text,))), images=shown, origin=origin)


def looked_at(*texts: str, size=None) -> dict | None:
    found = Boxes()
    for number, text in enumerate(texts, start=1):
        found.add(make_row(text, f"rows.jsonl:{number}"), size)
    return found.plain()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<|box_start|>(1,2),(30,40)<|box_end|>", [("<|box_start|>", ["1", "2", "30", "40"])]),
        ('{"bbox_2d": [1, 2.5, 3, 4], "label": "car"}', [("bbox_2d", ["1", "2.5", "3", "4"])]),
        (r"{\"bbox_2d\": [1, 2, 3, 4]}", [("bbox_2d", ["1", "2", "3", "4"])]),
        ("{'point_2d': [7, 8]}", [("point_2d", ["7", "8"])]),
        ("at [10, 20, 30, 40].", [("list of four numbers", ["10", "20", "30", "40"])]),
        ("[-1, 2, 3, 4]", [("list of four numbers", ["-1", "2", "3", "4"])]),
        ("[1, 2], [1, 2, 3], (4, 5) and f(1, 2)", []),
        ("[1, 2, 3, 4, 5]", []),
        ("no numbers", []),
    ],
)
def test_forms(text, found):
    assert find(text) == found


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [
        (["[10, 20, 300, 1000]"], boxes.THOUSANDTHS),
        (["[10, 20, 300, 400]", "[10, 20, 1300, 400]"], boxes.PIXELS),
        (["[0.1, 0.2, 0.5, 1]", "[0, 0, 0.25, 0.5]"], boxes.FRACTIONS),
        (["[0, 0, 1, 1]"], boxes.THOUSANDTHS),
        (["[0.1, 0.2, 0.5, 1.0]", "[10, 20, 300, 400]"], boxes.MIXED),
        (["[0.1, 0.2, 0.5, 1.0]", "[10, 20, 3000, 400]"], boxes.MIXED),
    ],
)
def test_units(texts, verdict):
    assert looked_at(*texts)["verdict"] == verdict


def test_boxes_that_never_leave_small_images_are_pixels():
    inside = ["[10, 20, 630, 470]"] * 60
    assert looked_at(*inside, size=SIZE)["verdict"] == boxes.SMALL_PIXELS
    assert looked_at(*inside[:10], size=SIZE)["verdict"] == boxes.THOUSANDTHS
    assert looked_at(*inside, "[10, 20, 900, 470]", size=SIZE)["verdict"] == boxes.THOUSANDTHS
    assert looked_at(*inside, size=(960, 960))["verdict"] == boxes.THOUSANDTHS


def test_points_are_measured_by_width_and_height_too():
    point = '{"point_2d": [630, 470]}'
    assert looked_at(*[point] * 60, size=SIZE)["verdict"] == boxes.SMALL_PIXELS
    assert looked_at(*[point] * 60, '{"point_2d": [630, 500]}', size=SIZE)["verdict"] == boxes.THOUSANDTHS


def test_named_boxes_go_before_lists_that_may_be_anything():
    found = looked_at('{"bbox_2d": [1, 2, 300, 400]}', "a matrix [1920, 1080, 60, 4]")
    assert found["verdict"] == boxes.THOUSANDTHS and found["forms"] == {"bbox_2d": 1}


def test_rows_without_images_have_no_boxes():
    found = Boxes()
    found.add(make_row("[1, 2, 3000, 4]", images=0), None)
    assert found.plain() is None


def test_findings_name_the_row_and_the_remedy():
    assert boxes.findings("train", looked_at("[1, 2, 3, 4]")) == []
    (pixels,) = boxes.findings("train", looked_at("[1, 2, 3, 4]", "[1, 2, 3000, 4]"))
    assert "likely absolute pixels" in pixels and "rows.jsonl:2: [1, 2, 3000, 4]" in pixels and "<bbox>" in pixels
    (mixed,) = boxes.findings("val", looked_at("[0.5, 0.5, 0.6, 0.7]", "[1, 2, 300, 4]"))
    assert "mixed units" in mixed and "rows.jsonl:1" in mixed and "rows.jsonl:2" in mixed
    (negative,) = boxes.findings("train", looked_at("[-5, 2, 300, 4]"))
    assert negative == "train: 1 box with a negative number"


def test_table_says_the_likely_units(capsys):
    boxes.show("train", looked_at("[1, 2, 3000, 4]"))
    assert "train: boxes, likely absolute pixels" in capsys.readouterr().out
