from pathlib import Path

import pytest
from PIL import Image

from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef
from harness.data.row import Media, Message, Row
from harness.doctor import duplicates
from harness.doctor.duplicates import Prints, compare


@pytest.fixture
def file(tmp_path: Path):
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def make_row(origin: str, answer: str, *sources, question: str = "What?") -> Row:
    asked = Message("user", (*[Media.image] * len(sources), question))
    images = tuple(ImageRef(source, origin) for source in sources)
    return Row(messages=(asked, Message("assistant", (answer,))), images=images, origin=origin)


def prints(*rows: Row) -> Prints:
    found = Prints()
    for row in rows:
        found.add(row)
    return found


def test_rows_are_the_same_where_text_and_pictures_are(file):
    one, copy, other = file("one", b"abcd"), file("copy", b"abcd"), file("other", b"abce")
    train = prints(
        make_row("t:1", "cat", one),
        make_row("t:2", "cat", copy),
        make_row("t:3", "cat", other),
        make_row("t:4", "dog", one),
        make_row("t:5", "cat", one, question="Which?"),
        make_row("t:6", "cat", one),
    )
    found = compare({"train": train})
    assert found["rows_in_train"] == {"number": 2, "first": ["t:2 = t:1", "t:6 = t:1"]}


def test_image_of_unlike_place_in_the_text_makes_another_row():
    picture = Image.new("RGB", (4, 4))
    first, last = ((Media.image, "What?"), ("What?", Media.image))
    rows = [
        Row(messages=(Message("user", parts),), images=(ImageRef(picture, "t:1"),), origin=f"t:{number}")
        for number, parts in enumerate((first, last), start=1)
    ]
    assert compare({"train": prints(*rows)})["rows_in_train"]["number"] == 0


def test_copies_that_the_sampling_asked_for_are_no_duplicates():
    row = make_row("t:1", "cat")
    assert compare({"train": prints(row, row)})["rows_in_train"]["number"] == 0


def test_validation_is_looked_for_in_training(file):
    shared, renamed, own = file("a", b"12345"), file("b", b"12345"), file("c", b"123456")
    train = prints(make_row("t:1", "cat", shared), make_row("t:2", "a dog"))
    val = prints(make_row("v:1", "cat", renamed), make_row("v:2", "a dog"), make_row("v:3", "a car", own, renamed))
    found = compare({"train": train, "val": val})
    assert found["rows_across"] == {"number": 2, "first": ["v:1 = t:1", "v:2 = t:2"]}
    assert found["media_across"] == {"number": 1, "first": [f"v:1 {renamed} = t:1 {shared}"]}
    told = duplicates.findings(found)
    assert told[0] == "val: 2 rows are in train too, so it measures what was learnt by heart (v:1 = t:1, v:2 = t:2)"
    assert told[1].startswith("val: 1 image or video is in train too (v:1 ")


@pytest.mark.parametrize("source", [b"\x89PNG and so on", Image.new("RGB", (8, 8), "red")])
def test_pictures_without_a_file_are_compared_too(source):
    train, val = prints(make_row("t:1", "cat", source)), prints(make_row("v:1", "dog", source))
    assert compare({"train": train, "val": val})["media_across"]["first"] == ["v:1 = t:1"]


def test_frames_of_videos_are_compared_as_images(file):
    frames = tuple(ImageRef(file(name, name.encode()), "t:1") for name in "ab")
    clip = Row(messages=(Message("user", (Media.video,)),), videos=(VideoRef(frames, "t:1"),), origin="t:1")
    val = prints(make_row("v:1", "cat", file("copy", b"b")))
    assert compare({"train": prints(clip), "val": val})["media_across"]["number"] == 1


def test_files_over_the_limit_are_said_and_those_of_validation_are_compared_first(file, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_FILES", 3)
    train = prints(*(make_row(f"t:{i}", f"cat {i}", file(f"t{i}", b"%d" % i)) for i in range(5)))
    val = prints(make_row("v:1", "cat", file("v", b"1")))
    found = compare({"train": train, "val": val})
    assert (found["files"], found["files_compared"]) == (6, 3)
    assert found["media_across"]["number"] == 1
    assert duplicates.findings(found)[-1] == "only the first 3 of 6 media files were compared by content"


def test_only_files_of_equal_size_are_read(file, monkeypatch):
    read = []
    monkeypatch.setattr(duplicates, "_file_digest", lambda path: read.append(Path(path).name) or b"")
    rows = [make_row("t:1", "a", file("one", b"1")), make_row("t:2", "b", file("two", b"22"), file("three", b"33"))]
    compare({"train": prints(*rows)})
    assert sorted(read) == ["three", "two"]


def test_missing_file_is_left_to_the_account():
    found = compare({"train": prints(make_row("t:1", "cat", "/no/such/file.png"))})
    assert found["rows_in_train"]["number"] == 0


def test_nothing_found_is_nothing_told():
    assert duplicates.findings(compare({"train": prints(make_row("t:1", "cat"))})) == []


def test_text_that_is_no_unicode_is_compared_all_the_same():
    lone = [make_row(f"t:{number}", "\ud800") for number in (1, 2)]
    assert compare({"train": prints(*lone)})["rows_in_train"]["number"] == 1
