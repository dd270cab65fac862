import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from harness.data.image import ImageRef
from harness.errors import UserError


def _encoded(image, kind, orientation=None, **options):
    file = io.BytesIO()
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_and_pixels_follow_the_exif_orientation(picture, kind, orientation):
    content = _encoded(picture(30, 50), kind, orientation)
    ref = ImageRef(content, "f:1")
    loaded = ref.load()
    assert ref.size() == (loaded.height, loaded.width) == ((30, 50) if orientation >= 5 else (50, 30))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(np.asarray(loaded), np.asarray(upright))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_size_never_decodes(picture, kind, monkeypatch):
    content = _encoded(picture(30, 50), kind)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert ImageRef(content, "f:1").size() == (50, 30)


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    loaded = ImageRef(_encoded(image, "PNG"), "f:1").load()
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (0, 0, 255) and loaded.getpixel((1, 1)) == (255, 255, 255)


def test_a_path_is_opened_late_and_named(tmp_path, picture):
    path = str(tmp_path / "p.png")
    ref = ImageRef(path, "f:3")
    with pytest.raises(UserError, match=r"f:3: image '.*p\.png' can not be opened: no such file"):
        ref.size()
    picture(30, 50).save(path)
    assert ref.size() == (50, 30)
    assert ref.num_bytes() == (tmp_path / "p.png").stat().st_size


def test_a_truncated_file_has_a_size_and_fails_when_decoded(picture):
    content = _encoded(picture(200, 300), "JPEG")
    ref = ImageRef(content[: len(content) // 2], "f:3")
    assert ref.size() == (300, 200)
    with pytest.raises(UserError, match=r"f:3: image in the row can not be decoded \(image file is truncated"):
        ref.load()


@pytest.mark.parametrize(
    ("image", "limit", "message"),
    [
        (Image.new("L", (201, 1)), 10**8, r"f:3: image .* is 201 x 1: its aspect ratio is over 200"),
        (
            Image.new("L", (100, 101)),
            10_000,
            r"has 100 x 101 pixels, more than 10,000 \(data\.image\.max_pixels_decoded",
        ),
        (Image.new("I;16", (5, 5)), 10**8, r"has more than 8 bits a channel \(mode I;16\)"),
    ],
)
def test_images_refused_by_their_header(image, limit, message):
    with pytest.raises(UserError, match=message):
        ImageRef(_encoded(image, "PNG"), "f:3", limit).size()
    with pytest.raises(UserError, match=message):
        ImageRef(image, "f:3", limit).size()


def test_the_configured_limit_replaces_pillows_own():
    bomb = _encoded(Image.new("1", (14_000, 14_000)), "PNG")
    with pytest.raises(UserError, match=r"has 14,000 x 14,000 pixels, more than 100,000,000"):
        ImageRef(bomb, "f:3").size()
    pillow_limit = Image.MAX_IMAGE_PIXELS
    assert ImageRef(bomb, "f:3", 200_000_000).size() == (14_000, 14_000)
    assert pillow_limit == Image.MAX_IMAGE_PIXELS


def test_formats_that_start_programs_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(UserError, match="not one of BMP"):
        ImageRef(postscript, "f:3").size()
