import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from harness.data.features.key import media_key, pixel_settings
from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef

GRID = (1, 4, 6)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)
    return path


def image(source, origin="f:1"):
    return ImageRef(source if isinstance(source, bytes | Image.Image) else str(source), origin)


def test_content_counts_and_not_the_name(picture, tmp_path):
    key = media_key("p", image(picture), GRID)
    shutil.copy(picture, tmp_path / "b.png")
    assert len(key) == 64
    assert media_key("p", image(tmp_path / "b.png", "f:9"), GRID) == key
    assert media_key("p", image(picture.read_bytes()), GRID) == key


def test_changed_bytes_grid_or_settings_are_another_key(picture):
    keys = {media_key("p", image(picture), GRID), media_key("q", image(picture), GRID)}
    keys.add(media_key("p", image(picture), (1, 6, 4)))
    content = bytearray(picture.read_bytes())
    content[-30] ^= 1
    picture.write_bytes(content)
    keys.add(media_key("p", image(picture), GRID))
    assert len(keys) == 4


def test_a_picture_in_memory_is_known_by_its_pixels(picture):
    with Image.open(picture) as opened:
        first, second = opened.convert("RGB"), opened.convert("RGB")
    key = media_key("p", image(first), GRID)
    assert media_key("p", image(second), GRID) == key
    second.putpixel((0, 0), (1, 2, 3))
    assert media_key("p", image(second), GRID) != key
    assert media_key("p", image(first.rotate(180)), GRID) != key


def test_a_video_is_known_by_its_frames_their_order_and_its_rate(picture, tmp_path):
    Image.new("RGB", (96, 64)).save(tmp_path / "b.png")
    frames = (image(picture), image(tmp_path / "b.png"))
    sources = [VideoRef(frames, "f:1"), VideoRef(frames[::-1], "f:1"), VideoRef(frames, "f:1", 2.0)]
    sources += [VideoRef(str(picture), "f:1"), VideoRef(str(picture), "f:1", 2.0)]
    keys = {media_key("p", ref, GRID) for ref in sources} | {media_key("p", image(picture), GRID)}
    assert len(keys) == 6


def test_whatever_changes_pixels_is_in_the_settings(encoder, make_encoder):
    pixels, sampling = encoder.pixels, encoder.text.sampling
    known = pixel_settings(pixels, sampling)
    assert pixel_settings(make_encoder().pixels, sampling) == known
    assert pixel_settings(pixels, dataclasses.replace(sampling, fps=1.0)) != known
    # A budget changes grids alone, and those stand in the key.
    assert pixel_settings(make_encoder(max_length=99).pixels, sampling) == known
    changed = make_encoder().pixels
    changed._shift_C = changed._shift_C + 1
    assert pixel_settings(changed, sampling) != known
    assert json.loads(known)[0][:3] == [pixels.patch_size, pixels.merge_size, pixels.temporal_patch_size]


def test_a_file_that_is_gone_is_the_callers_matter(tmp_path):
    with pytest.raises(FileNotFoundError):
        media_key("p", image(tmp_path / "gone.png"), GRID)
