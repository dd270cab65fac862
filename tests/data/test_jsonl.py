import json
import shutil

import pytest

from harness.data.config import ImageConfig
from harness.data.jsonl import JsonlConfig, build
from harness.errors import UserError

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def _rows(count):
    return [{"messages": [TURNS[0], {"role": "assistant", "content": str(i)}]} for i in range(count)]


def test_reads_files_in_order_with_line_numbers_past_blank_lines(write_rows):
    first = write_rows({"messages": TURNS}, "", {"messages": TURNS, "id": 7}, name="a.jsonl")
    second = write_rows("\ufeff" + json.dumps({"messages": TURNS}), name="b.jsonl")
    sources = build(JsonlConfig(train=[first, second], val=second))
    assert [row.origin for row in sources.train] == [f"{first}:1", f"{first}:3", f"{second}:1"]
    assert [row.origin for row in sources.val] == [f"{second}:1"]


def test_images_are_relative_to_the_file_or_to_root(write_rows, picture, tmp_path):
    (tmp_path / "pictures").mkdir()
    picture(10, 20).save(tmp_path / "pictures" / "p.png")
    turns = [{"role": "user", "content": "<image>?"}, TURNS[1]]
    beside = write_rows({"messages": turns, "images": ["pictures/p.png"]}, name="a.jsonl")
    rooted = write_rows({"messages": turns, "images": ["p.png"]}, name="b.jsonl")
    for config in (JsonlConfig(train=beside), JsonlConfig(train=rooted, root=str(tmp_path / "pictures"))):
        assert build(config).train[0].images[0].size() == (20, 10)
    with pytest.raises(UserError, match=r"b\.jsonl:1: image 'p\.png' does not exist .*data\.root"):
        build(JsonlConfig(train=rooted))


def test_split_is_deterministic_disjoint_and_keeps_the_files_order(write_rows):
    path = write_rows(*_rows(20))
    one, again = (build(JsonlConfig(train=path, split_ratio=0.25)) for _ in range(2))
    other = build(JsonlConfig(train=path, split_ratio=0.25, seed=1))
    assert [row.origin for row in one.val] == [row.origin for row in again.val]
    assert [row.origin for row in one.val] != [row.origin for row in other.val]
    assert len(one.val) == 5
    numbers = [[int(row.messages[1].text) for row in rows] for rows in (one.train, one.val)]
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert all(part == sorted(part) for part in numbers)


def test_fingerprint_follows_the_content_not_the_place(write_rows, tmp_path):
    path = write_rows(*_rows(4))
    copy = tmp_path / "elsewhere.jsonl"
    shutil.copyfile(path, copy)
    assert build(JsonlConfig(train=path)).fingerprint == build(JsonlConfig(train=str(copy))).fingerprint
    assert build(JsonlConfig(train=path)).fingerprint != build(JsonlConfig(train=write_rows(*_rows(5)))).fingerprint


def test_pixel_limit_reaches_the_images(write_rows, picture, tmp_path):
    picture(10, 20).save(tmp_path / "p.png")
    path = write_rows({"messages": [{"role": "user", "content": "<image>"}, TURNS[1]], "images": ["p.png"]})
    row = build(JsonlConfig(train=path, image=ImageConfig(max_pixels_decoded=199))).train[0]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: image .* has 10 x 20 pixels, more than 199"):
        row.images[0].size()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data\.train=null: give a JSONL file"),
        ({"train": 3}, r"data\.train=3: give a path or a list of paths"),
        ({"train": "a", "val": [None]}, r"data\.val=\[None\]: give a path or a list of paths"),
        ({"train": "a", "split_ratio": 1.0}, r"data\.split_ratio=1\.0: give 0, or a share below 1"),
        ({"train": "a", "val": "b", "split_ratio": 0.1}, r"data\.split_ratio=0\.1: has no effect beside data\.val"),
    ],
)
def test_settings_that_can_not_be_used(settings, message):
    with pytest.raises(UserError, match=message):
        JsonlConfig(**settings)


def test_files_that_can_not_be_used(write_rows, tmp_path):
    with pytest.raises(UserError, match=r"data\.train=nowhere\.jsonl: no such file"):
        build(JsonlConfig(train="nowhere.jsonl"))
    with pytest.raises(UserError, match=r"data\.val=.*empty\.jsonl: the file has no rows"):
        build(JsonlConfig(train=write_rows(*_rows(1)), val=write_rows("", name="empty.jsonl")))
    with pytest.raises(UserError, match=r"data\.root=nowhere: no such folder"):
        build(JsonlConfig(train=write_rows(*_rows(1)), root="nowhere"))
    with pytest.raises(UserError, match=r"data\.split_ratio=0\.1: leaves one side empty with 2 rows"):
        build(JsonlConfig(train=write_rows(*_rows(2)), split_ratio=0.1))
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl:1: not UTF-8 .*at byte 14"):
        build(JsonlConfig(train=str(tmp_path / "latin.jsonl")))


def test_a_line_that_is_not_json_is_named_with_its_column(write_rows):
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not JSON at column 15 "):
        build(JsonlConfig(train=write_rows(*_rows(1), '{"messages": [}')))
