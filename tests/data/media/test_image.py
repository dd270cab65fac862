import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from harness.data.media.image import ImageRef
from harness.data.row_error import RowError


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_and_pixels_follow_the_exif_orientation(encoded, picture, kind, orientation):
    content = encoded(picture(30, 50), kind, orientation)
    ref = ImageRef(content, "f:1")
    loaded = ref.load()
    assert ref.size() == (loaded.height, loaded.width) == ((30, 50) if orientation >= 5 else (50, 30))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(np.asarray(loaded), np.asarray(upright))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_size_never_decodes(encoded, picture, kind, monkeypatch):
    content = encoded(picture(30, 50), kind)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert ImageRef(content, "f:1").size() == (50, 30)


def test_transparent_pixels_become_white(encoded):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    loaded = ImageRef(encoded(image, "PNG"), "f:1").load()
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (0, 0, 255) and loaded.getpixel((1, 1)) == (255, 255, 255)


def test_a_path_is_opened_late_and_named(tmp_path, picture):
    path = str(tmp_path / "p.png")
    ref = ImageRef(path, "f:3")
    assert ref.path == path
    for look in (ref.size, ref.probe, ref.load, ref.stamp):
        with pytest.raises(RowError, match=r"f:3: image '.*p\.png' can not be opened: no such file") as caught:
            look()
        assert caught.value.reason == "missing image"
    picture(30, 50).save(path)
    assert ref.size() == ref.probe() == (50, 30)


def test_the_stamp_shows_that_a_file_changed(tmp_path, picture):
    ref = ImageRef(str(tmp_path / "p.png"), "f:3")
    picture(30, 50).save(ref.path)
    first = ref.stamp()
    assert first[0] == (tmp_path / "p.png").stat().st_size and first == ref.stamp()
    os.utime(ref.path, ns=(1, 1))
    assert ref.stamp() == (first[0], 1)
    memory = ImageRef(b"x", "f:3")
    assert memory.stamp() is None and memory.path is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_file_that_breaks_off_has_a_size_and_is_found_by_probe(encoded, picture, kind, share):
    content = encoded(picture(200, 300), kind)
    ref = ImageRef(content[: int(len(content) * share)], "f:3")
    if kind not in ("WEBP", "TIFF"):  # Pillow checks these two when it opens them
        assert ref.size() == (300, 200)
    with pytest.raises(RowError, match=r"f:3: image in the row can not be (decoded|opened)") as caught:
        ref.probe()
    assert caught.value.reason == "broken image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("garbage", [b"", b"\0" * 50, b"\0" * 4000, b"appended text " * 100])
def test_what_stands_behind_a_whole_file_is_no_damage(encoded, picture, kind, garbage):
    ref = ImageRef(encoded(picture(40, 30), kind) + garbage, "f:3")
    assert ref.probe() == (30, 40)
    assert ref.load().size == (40, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_probe_does_not_decode_whole_files(encoded, picture, kind, monkeypatch, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(picture(300, 200), kind))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert ImageRef(str(path), "f:1").probe() == (200, 300)
    assert ImageRef(path.read_bytes(), "f:1").probe() == (200, 300)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damaged_files_give_row_errors_and_nothing_else(encoded, picture, kind):
    content = bytearray(encoded(picture(60, 40), kind, 6 if kind in ("JPEG", "PNG", "WEBP", "TIFF") else None))
    random = np.random.default_rng(0)
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            damaged = bytearray(content[: random.integers(0, len(content) + 1)])
            for place in random.integers(0, min(len(content), 300), 4):
                damaged[place : place + 1] = random.bytes(1)
            for look in (ImageRef(bytes(damaged), "f:1", 10**6).probe, ImageRef(bytes(damaged), "f:1", 10**6).load):
                try:
                    look()
                    outcomes.add("read")
                except RowError as error:
                    outcomes.add(error.reason)
    assert "broken image" in outcomes
    assert outcomes <= {"read", "broken image", "too large", "aspect ratio", "wrong type"}


@pytest.mark.parametrize(
    ("image", "limit", "message", "reason"),
    [
        (Image.new("L", (201, 1)), 10**8, r"f:3: image .* is 201 x 1: its aspect ratio is over 200", "aspect ratio"),
        (
            Image.new("L", (100, 101)),
            10_000,
            r"has 100 x 101 pixels, more than 10,000 \(data\.image\.max_pixels_decoded",
            "too large",
        ),
        (Image.new("I;16", (5, 5)), 10**8, r"has more than 8 bits a channel \(mode I;16\)", "wrong type"),
    ],
)
def test_images_refused_by_their_header(encoded, image, limit, message, reason):
    with pytest.raises(RowError, match=message):
        ImageRef(encoded(image, "PNG"), "f:3", limit).size()
    with pytest.raises(RowError, match=message) as caught:
        ImageRef(image, "f:3", limit).probe()
    assert caught.value.reason == reason


def test_the_configured_limit_replaces_pillows_own(encoded):
    bomb = encoded(Image.new("1", (14_000, 14_000)), "PNG")
    with pytest.raises(RowError, match=r"has 14,000 x 14,000 pixels, more than 100,000,000"):
        ImageRef(bomb, "f:3").size()
    pillow_limit = Image.MAX_IMAGE_PIXELS
    assert ImageRef(bomb, "f:3", 200_000_000).size() == (14_000, 14_000)
    assert pillow_limit == Image.MAX_IMAGE_PIXELS


def test_formats_that_start_programs_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(RowError, match="not one of BMP"):
        ImageRef(postscript, "f:3").size()
