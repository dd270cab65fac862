import json
import random

import pytest

from harness.trainer import manifest
from harness.trainer.manifest import NAME, START, Entry, fault, write


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of step 3 with two files, one of them in a folder, and a start beside it."""
    folder = tmp_path / "step_3"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "rank_0").write_bytes(bytes(range(256)) * 4)
    (folder / "state").write_bytes(b"weights")
    (folder / START).write_bytes(b"start")
    assert write(folder, 3, {}) == 1024 + 7 + 5
    return folder


def test_what_was_written_has_no_fault(folder):
    assert fault(folder, 3) is None
    assert json.loads((folder / NAME).read_text())["files"].keys() == {"parts/rank_0", "state", START}


@pytest.mark.parametrize("name", ["parts/rank_0", "state", START, NAME])
def test_any_flipped_bit_shows_and_is_named(folder, name):
    """Of the manifest too: one in a key, a brace or a space is none that was written."""
    path, draw = folder / name, random.Random(0)
    content = path.read_bytes()
    for _ in range(300):
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        found = fault(folder, 3)
        assert found is not None and "\n" not in found, place
        assert name == NAME or found.startswith(name), found
    path.write_bytes(content)
    assert fault(folder, 3) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "state").unlink(), "state: missing"),
        (lambda folder: (folder / START).unlink(), r"../start.safetensors: missing"),
        (lambda folder: (folder / NAME).unlink(), "manifest.json: missing"),
        (lambda folder: (folder / NAME).write_text("{"), "manifest.json: not readable"),
        (lambda folder: (folder / "state").write_bytes(b"weight"), "state: has 6 bytes, 7 were written"),
        (lambda folder: (folder / "parts" / "rank_1").touch(), "parts/rank_1: not in manifest.json"),
        (lambda folder: (folder / "link").symlink_to("/tmp"), "link: not in manifest.json"),
        (lambda folder: (folder / NAME).write_text((folder / NAME).read_text() + " "), "manifest.json: not what was"),
    ],
    ids=range(8),
)
def test_each_fault_is_said_in_a_line(folder, change, expected):
    change(folder)
    assert fault(folder, 3).startswith(expected)


def test_a_checkpoint_of_another_step_is_none_of_this_one(folder):
    assert fault(folder, 4) == "manifest.json: not what was written for step 4"


def test_what_is_known_of_a_file_is_believed_and_not_read_again(tmp_path):
    """A disk that wrote something else is found when the checkpoint is loaded."""
    (tmp_path / "state").write_bytes(b"weights")
    write(tmp_path, 1, {"state": Entry(7, "0" * 64)})
    assert fault(tmp_path, 1) == "state: content is not what was written (sha256)"


def test_a_manifest_can_not_point_out_of_its_folder(folder):
    for name in ("/etc/passwd", "../../x", "a/../../x"):
        assert manifest._parse(json.dumps({"files": {name: {"size": 1, "sha256": ""}}}).encode()) is None
