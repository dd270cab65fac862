"""The header reader against Pillow, which is the reference for size and orientation."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harness.data.media import image_header
from harness.data.media.image import ImageRef, _orientation


def _by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        turned = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def _segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _inserted(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "optimize": True}, {"dpi": (9, 9)}])
def test_jpeg_agrees_with_pillow(picture, encoded, mode, orientation, options):
    content = encoded(picture(33, 21, mode), "JPEG", orientation, **options)
    assert image_header.read_size(content) == _by_pillow(content)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_png_agrees_with_pillow(picture, encoded, mode, orientation):
    content = encoded(picture(33, 21, mode), "PNG", orientation, dpi=(72, 72), icc_profile=b"profile" * 50)
    found = image_header.read_size(content)
    assert found == _by_pillow(content) if orientation is None else found is None


def test_random_jpeg_headers_agree_with_pillow_or_are_left_to_it(picture, encoded):
    random = np.random.default_rng(0)
    known = 0
    for number in range(200):
        exif = Image.Exif()
        tags = random.permutation([0x010E, 0x0112, 0x0132, 0x8298])[: random.integers(1, 5)]
        for tag in tags.tolist():
            exif[tag] = int(random.integers(1, 9)) if tag == 0x0112 else "text" * int(random.integers(0, 20))
        exif.endian = "<" if number % 2 else ">"
        content = encoded(picture(24, 8), "JPEG", exif=exif)
        if number % 3 == 0:
            content = _inserted(content, _segment(0xFE, random.bytes(random.integers(0, 300))), b"\xff\xff")
        found = image_header.read_size(content)
        known += found is not None
        assert found in (None, _by_pillow(content))
    assert known == 200


def test_orientation_in_xmp_alone_is_left_to_pillow(picture, encoded):
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'
    plain = encoded(picture(24, 8), "JPEG")
    content = _inserted(plain, _segment(0xE1, xmp))
    assert image_header.read_size(content) is None
    assert ImageRef(content, "f:1").size() == (24, 8) == _by_pillow(content)
    both = _inserted(encoded(picture(24, 8), "JPEG", 1), _segment(0xE1, xmp))
    assert image_header.read_size(both) == (8, 24) == _by_pillow(both)


def test_unusual_headers_are_left_to_pillow(picture, encoded):
    jpeg = encoded(picture(24, 8), "JPEG")
    text = PngInfo()
    text.add_text("Comment", "x")
    large = _inserted(jpeg, *[_segment(0xE2, bytes(60_000))] * 2)
    for content in (
        encoded(picture(24, 8), "PNG", pnginfo=text),
        encoded(Image.new("I;16", (24, 8)), "PNG"),
        encoded(picture(24, 8), "WEBP"),
        _inserted(jpeg, _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0")),
        _inserted(encoded(picture(24, 8), "JPEG", 6), _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0")),
        large[: image_header.HEAD_BYTES],
        jpeg[:30],
        b"\xff\xd8\xff",
        b"",
    ):
        assert image_header.read_size(content) is None
    assert ImageRef(large, "f:1").size() == (8, 24)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_thousand_probes_take_a_fraction_of_a_second(picture, encoded, tmp_path, kind):
    for number in range(10):
        (tmp_path / f"{number}").write_bytes(encoded(picture(300 + number, 200), kind, **{}))
    refs = [ImageRef(str(tmp_path / f"{number % 10}"), "f:1") for number in range(1000)]
    start = time.perf_counter()
    for ref in refs:
        ref.probe()
    # 100,000 in 40 s is 0.4 s; some 0.05 s is usual, and the rest is for a busy machine.
    assert time.perf_counter() - start < 0.4
