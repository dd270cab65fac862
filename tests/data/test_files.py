import json
import shutil
import subprocess
import sys

import pytest

from harness.data.config import ImageConfig
from harness.data.files import FilesConfig, Stopping, build
from harness.data.row_error import RowError
from harness.errors import UserError

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def _rows(count):
    return [{"messages": [TURNS[0], {"role": "assistant", "content": str(i)}]} for i in range(count)]


def _numbers(rows):
    return [int(row.messages[1].text) for row in rows]


def test_reads_files_in_order_with_line_numbers_past_blank_lines(write_rows):
    first = write_rows({"messages": TURNS}, "", {"messages": TURNS, "id": 7}, name="a.jsonl")
    second = write_rows("\ufeff" + json.dumps({"messages": TURNS}), name="b.jsonl")
    sources = build(FilesConfig(train=[first, second], val=second))
    assert [row.origin for row in sources.train] == [f"{first}:1", f"{first}:3", f"{second}:1"]
    assert [row.origin for row in sources.val] == [f"{second}:1"]
    assert len(build(FilesConfig(train=first)).val) == 0


def test_rows_of_different_forms_stand_in_one_file(write_rows):
    path = write_rows(
        {"query": "a", "response": "b", "extra": 1},
        {"messages": TURNS, "images": None, "extra": "one"},
        {"messages": TURNS, "images": [], "extra": [1, "two"]},
        {"instruction": "a", "input": "b", "output": "c", "extra": {"x": None}},
        {"text": "plain"},
    )
    rows = build(FilesConfig(train=path)).train
    assert [row.messages[-1].text for row in rows] == ["b", "Hi", "Hi", "c", "plain"]


def test_images_are_relative_to_the_file_or_to_root(write_rows, picture, tmp_path):
    (tmp_path / "pictures").mkdir()
    picture(10, 20).save(tmp_path / "pictures" / "p.png")
    turns = [{"role": "user", "content": "<image>?"}, TURNS[1]]
    beside = write_rows({"messages": turns, "images": ["pictures/p.png"]}, name="a.jsonl")
    rooted = write_rows({"messages": turns, "images": ["p.png"]}, name="b.jsonl")
    for config in (FilesConfig(train=beside), FilesConfig(train=rooted, root=str(tmp_path / "pictures"))):
        assert build(config).train[0].images[0].size() == (20, 10)
    with pytest.raises(RowError, match=r"b\.jsonl:1: image 'p\.png' does not exist .*data\.root"):
        build(FilesConfig(train=rooted)).train[0]


def test_columns_are_renamed(write_rows):
    path = write_rows({"frage": "a", "antwort": "b", "query": "mine"})
    columns = {"frage": "query", "antwort": "response", "query": "_"}
    row = build(FilesConfig(train=path, columns=columns)).train[0]
    assert [message.text for message in row.messages] == ["a", "b"]


def test_split_is_deterministic_disjoint_and_keeps_the_files_order(write_rows):
    path = write_rows(*_rows(20))
    one, again = (build(FilesConfig(train=path, split_ratio=0.25)) for _ in range(2))
    other = build(FilesConfig(train=path, split_ratio=0.25, seed=1))
    assert [row.origin for row in one.val] == [row.origin for row in again.val]
    assert [row.origin for row in one.val] != [row.origin for row in other.val]
    assert len(one.val) == 5
    numbers = [_numbers(rows) for rows in (one.train, one.val)]
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert all(part == sorted(part) for part in numbers)


def test_the_same_file_under_two_names_is_split_once(write_rows, tmp_path):
    path = write_rows(*_rows(20))
    sources = build(FilesConfig(train=[path, f"{path}#50", str(tmp_path)], split_ratio=0.25))
    assert not set(_numbers(sources.train)) & set(_numbers(sources.val))
    assert len(sources.val) == 5 and len(sources.train) == 15 + 45 + 15


def test_sampled_and_weighted_entries(write_rows):
    one, two = write_rows(*_rows(10), name="a.jsonl"), write_rows(*_rows(30)[10:], name="b.jsonl")
    assert _numbers(build(FilesConfig(train=[f"{one}#3", f"{two}#2"], shuffle=False)).train) == [0, 1, 2, 10, 11]
    assert len(build(FilesConfig(train=one, val=f"{two}#50")).val) == 50
    mixed = _numbers(build(FilesConfig(train=[one, two], weights=[1, 3], stopping=Stopping.all_exhausted)).train)
    assert set(mixed) == set(range(30)) and len(mixed) > 30
    first = _numbers(build(FilesConfig(train=[one, two], weights=[1, 3])).train)
    assert len(set(first)) == len(first) < 30 and first != sorted(first)


def test_fingerprint_follows_the_content_not_the_place(write_rows, tmp_path):
    path = write_rows(*_rows(4))
    copy = tmp_path / "elsewhere.jsonl"
    shutil.copyfile(path, copy)
    one = build(FilesConfig(train=path))
    copied = build(FilesConfig(train=str(copy)))
    assert one.fingerprint == copied.fingerprint and one.train.fingerprint != copied.train.fingerprint
    others = [
        FilesConfig(train=f"{path}#3"),
        FilesConfig(train=f"{path}#3", seed=1),
        FilesConfig(train=path, val=path),
        FilesConfig(train=path, split_ratio=0.5),
        FilesConfig(train=[path, path], weights=[1, 2]),
        FilesConfig(train=path, streaming=True),
        FilesConfig(train=write_rows(*_rows(5))),
    ]
    found = [build(config).fingerprint for config in others]
    assert len({one.fingerprint, *found}) == len(others) + 1


def test_pixel_limit_reaches_the_images(write_rows, picture, tmp_path):
    picture(10, 20).save(tmp_path / "p.png")
    path = write_rows({"messages": [{"role": "user", "content": "<image>"}, TURNS[1]], "images": ["p.png"]})
    row = build(FilesConfig(train=path, image=ImageConfig(max_pixels_decoded=199))).train[0]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: image .* has 10 x 20 pixels, more than 199"):
        row.images[0].size()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": None}, r"data\.train=null: give a file, a folder or a hub id"),
        ({"train": 3}, r"data\.train=3: give a path or a list of paths"),
        ({"train": " "}, r"data\.train= : give a path or a list of paths"),
        ({"val": [None]}, r"data\.val=\[None\]: give a path or a list of paths"),
        ({"split_ratio": 1.0}, r"data\.split_ratio=1\.0: give 0, or a share below 1"),
        ({"val": "b", "split_ratio": 0.1}, r"data\.split_ratio=0\.1: has no effect beside data\.val"),
        ({"seed": -1}, r"data\.seed=-1: give 0 or more"),
        ({"seed": 1}, r"data\.seed=1: has no effect without data\.split_ratio, #rows or data\.weights"),
        ({"columns": {"a": "nothing"}}, r"data\.columns\.a=nothing: is no key of a row"),
        ({"columns": {"a": "query", "b": "query"}}, r"data\.columns=.*: two columns become 'query'"),
        ({"stopping": Stopping.all_exhausted}, r"data\.stopping=all_exhausted: has no effect without data\.weights"),
        ({"weights": [1.0]}, r"data\.weights=\[1\.0\]: interleaves several entries, and data\.train has one"),
        ({"train": ["a", "b"], "weights": [1.0]}, r"data\.weights=\[1\.0\]: give one for each of the 2 entries"),
        ({"train": ["a", "b"], "weights": [1.0, 0]}, r"data\.weights=\[1\.0, 0\]: give numbers above 0"),
        ({"train": ["a", "b"], "weights": [1, float("inf")]}, r"data\.weights=.*: give numbers above 0"),
        ({"shuffle_buffer": 0}, r"data\.shuffle_buffer=0: give at least 1"),
        ({"shuffle_buffer": 5}, r"data\.shuffle_buffer=5: has no effect without data\.streaming=true"),
        ({"shuffle_buffer": 5, "streaming": True, "shuffle": False}, r"data\.shuffle_buffer=5: has no effect"),
        ({"streaming": True, "split_ratio": 0.1}, r"data\.split_ratio=0\.1: a stream can not be split; give data\.val"),
        ({"streaming": True, "group_by_length": True}, r"data\.group_by_length=true: has no effect on a stream"),
    ],
)
def test_settings_that_can_not_be_used(settings, message):
    with pytest.raises(UserError, match=message):
        FilesConfig(**({"train": "a"} | settings))


def test_files_that_can_not_be_used(write_rows, tmp_path):
    with pytest.raises(UserError, match=r"^data\.train=nowhere\.jsonl: no such file$"):
        build(FilesConfig(train="nowhere.jsonl"))
    with pytest.raises(UserError, match=r"data\.val=.*empty\.jsonl: the file has no rows"):
        build(FilesConfig(train=write_rows(*_rows(1)), val=write_rows("", name="empty.jsonl")))
    with pytest.raises(UserError, match=r"data\.root=nowhere: no such folder"):
        build(FilesConfig(train=write_rows(*_rows(1)), root="nowhere"))
    with pytest.raises(UserError, match=r"data\.split_ratio=0\.1: leaves one side empty with 2 rows"):
        build(FilesConfig(train=write_rows(*_rows(2)), split_ratio=0.1))
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}\n')
    with pytest.raises(RowError, match=r"latin\.jsonl:1: not UTF-8 .*at byte 14"):
        build(FilesConfig(train=str(tmp_path / "latin.jsonl"))).train[0]


def test_a_line_that_is_not_json_is_named_with_its_column(write_rows):
    with pytest.raises(RowError, match=r"rows\.jsonl:2: not JSON at column 15 "):
        build(FilesConfig(train=write_rows(*_rows(1), '{"messages": [}'))).train[1]


def test_a_stream_validates_on_rows(write_rows):
    path = write_rows(*_rows(3))
    sources = build(FilesConfig(train=path, val=path, streaming=True))
    assert next(sources.train.read(0, 1, 0)).origin.startswith(path) and len(sources.val) == 3


def test_the_config_loads_no_heavy_package():
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'datasets', 'pyarrow', 'av'}"
    code = f"import sys; from harness.data.files import FilesConfig; FilesConfig(train='a', columns={{'a': 'query'}}); \
print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
