import base64
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.media.image import ImageRef
from harness.data.media.reference import MediaPolicy, image_reference, video_reference
from harness.data.row_error import RowError


@pytest.fixture
def folder(tmp_path, picture):
    """Holds in/p.png and p.png."""
    (tmp_path / "in").mkdir()
    picture(30, 20).save(tmp_path / "in" / "p.png")
    picture(30, 20).save(tmp_path / "p.png")
    return tmp_path


@pytest.fixture
def policy(folder):
    return MediaPolicy(folder / "in")


def _reason(function, entry, policy, match):
    with pytest.raises(RowError, match=match) as caught:
        function(entry, "f:7", policy)
    assert caught.value.origin == "f:7"
    return caught.value.reason


@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_way_to_name_a_file_gives_the_same_reference(folder, policy, kind, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "in"))
    make = image_reference if kind == "image" else video_reference
    path = str(folder / "in" / "p.png")
    for entry in (
        "p.png",
        "./p.png",
        "../in/p.png",
        "~/p.png",
        path,
        Path(path),
        f"file://{path}",
        f"file://localhost{path}",
        {"path": "p.png"},
        {"bytes": None, "path": "p.png"},
        {"url": "p.png"},
    ):
        ref = make(entry, "f:7", policy)
        assert ref.source == ref.path == path
        assert ref.origin == "f:7"


def test_a_file_uri_has_its_escapes_undone(folder, policy, picture):
    picture(4, 4).save(folder / "in" / "a b#.png")
    ref = image_reference((folder / "in" / "a b#.png").as_uri(), "f:7", policy)
    assert ref.probe() == (4, 4)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_way_to_give_content_gives_the_same_reference(folder, policy, kind):
    make = image_reference if kind == "image" else video_reference
    content = (folder / "p.png").read_bytes()
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for entry in (
        content,
        {"bytes": content},
        {"bytes": bytearray(content), "path": "gone.png"},
        {"bytes": text},
        {"bytes": lines},
        f"data:image/png;base64,{text}",
        f"DATA:image/png;charset=x;base64,{lines}",
        {"url": f"data:;base64,{text}"},
    ):
        ref = make(entry, "f:7", policy)
        assert ref.source == content and ref.path is None


def test_pictures_in_memory_and_limits_pass_through(policy, picture):
    image = picture(4, 4)
    policy = MediaPolicy(policy.base, max_pixels=9, time_limit_s=3)
    assert image_reference(image, "f:7", policy) == ImageRef(image, "f:7", 9)
    video = video_reference([image, "p.png"], "f:7", policy)
    assert [frame.max_pixels for frame in video.source] == [9, 9]
    assert (video.max_pixels, video.time_limit_s) == (9, 3)


@pytest.mark.parametrize(
    ("entry", "reason", "match"),
    [
        (None, "wrong type", "an? image must be a path, .*, got null"),
        ("", "wrong type", "got an empty text"),
        (3, "wrong type", "got int"),
        ([["p.png"]], "wrong type", "got list"),
        ({}, "wrong type", "got null"),
        ({"path": ["p.png"]}, "wrong type", "got list"),
        ({"bytes": [1, 2]}, "wrong type", "bytes of an? image must be bytes or base64, got list"),
        ({"bytes": "no base64!"}, "broken image", "given as data is not base64"),
        ("data:image/png,abc", "wrong type", "is a data URI without base64"),
        ("data:image/png;base64,???", "broken image", "given as data is not base64"),
        (
            "gone.png",
            "missing image",
            r"f:7: image 'gone\.png' does not exist \(.*in/gone\.png\); relative paths start",
        ),
        ("a\0b", "missing image", "does not exist"),
        ("\ud800.png", "missing image", "does not exist"),
        ("x" * 5000, "missing image", "does not exist"),
        (".", "missing image", "does not exist"),
        ("file://elsewhere/p.png", "missing image", "does not exist"),
        ("https://example.invalid/p.png", "unreachable url", r"data\.cache_dir=null .*; download it yourself"),
    ],
)
def test_what_names_no_image_is_refused(policy, entry, reason, match):
    assert _reason(image_reference, entry, policy, match) == reason


@pytest.mark.parametrize(
    ("entry", "reason", "match"),
    [
        ([], "missing video", "a video is an empty list"),
        ({"frames": []}, "missing video", "a video is an empty list"),
        (["gone.png"], "missing image", "does not exist"),
        ("gone.mp4", "missing video", "video 'gone.mp4' does not exist"),
        ({"video": None}, "wrong type", "a video must be .*, got null"),
        ({"video": {"video": "p.png"}}, "wrong type", "got null"),
        ({"video": "p.png", "fps": "2"}, "wrong type", "fps of a video must be above 0 and at most 10000, got '2'"),
        ({"video": "p.png", "fps": 0}, "wrong type", "fps of a video"),
        ({"video": "p.png", "fps": True}, "wrong type", "fps of a video"),
        ({"video": "p.png", "fps": float("nan")}, "wrong type", "fps of a video"),
        ({"video": "p.png", "fps": 10**400}, "wrong type", "fps of a video"),
        ({"video": "p.png", "sample_fps": -1}, "wrong type", "fps of a video"),
    ],
)
def test_what_names_no_video_is_refused(policy, entry, reason, match):
    assert _reason(video_reference, entry, policy, match) == reason


@pytest.mark.parametrize("key", ["fps", "sample_fps"])
def test_a_video_can_bring_its_rate(policy, key):
    for entry in ({"video": "p.png"}, {"video": {"path": "p.png"}}, {"frames": ["p.png"] * 2}):
        assert video_reference(entry, "f:7", policy).fps is None
        assert video_reference(entry | {key: 4}, "f:7", policy).fps == 4.0
    assert len(video_reference({"video": ["p.png"] * 3}, "f:7", policy).source) == 3


def test_paths_that_leave_the_root_are_refused(folder, policy):
    inside = MediaPolicy(policy.base, root=folder / "in")
    assert image_reference("p.png", "f:7", inside).probe() == (20, 30)
    (folder / "in" / "link.png").symlink_to("../p.png")
    (folder / "in" / "up").symlink_to("..")
    (folder / "in" / "fine.png").symlink_to("p.png")
    assert image_reference("fine.png", "f:7", inside).source == str(folder / "in" / "p.png")
    for entry in ("../p.png", str(folder / "p.png"), (folder / "p.png").as_uri(), "link.png", "up/p.png"):
        image_reference(entry, "f:7", policy)
        match = r"is outside .*; move it there, or set data\.root=null"
        assert _reason(image_reference, entry, inside, match) == "outside data.root"
        assert _reason(video_reference, [entry], inside, match) == "outside data.root"


def test_a_root_behind_a_link_is_fine(folder):
    (folder / "link").symlink_to("in")
    policy = MediaPolicy(folder / "link", root=folder / "link")
    assert image_reference("p.png", "f:7", policy).probe() == (20, 30)


def test_a_sibling_whose_name_begins_like_the_root_is_outside(folder, picture):
    (folder / "in2").mkdir()
    picture(4, 4).save(folder / "in2" / "p.png")
    policy = MediaPolicy(folder / "in", root=folder / "in")
    assert _reason(image_reference, "../in2/p.png", policy, "is outside") == "outside data.root"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bytes", "path", "url", "video", "frames", "fps"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(entry=_JSON)
def test_any_entry_gives_a_reference_or_a_row_error(entry):
    policy = MediaPolicy(Path("nowhere"), root=Path("nowhere"))
    for make in (image_reference, video_reference):
        try:
            pickle.loads(pickle.dumps(make(entry, "f:7", policy)))
        except RowError as error:
            assert error.origin == "f:7"
