"""Fixtures of the media tests: encoded pictures and videos."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Encodes a picture, perhaps with an EXIF orientation."""

    def encode(image: Image.Image, kind: str, orientation: int | None = None, **options: object) -> bytes:
        file = io.BytesIO()
        if orientation is not None:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            options["exif"] = exif
        image.save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., str]:
    """Writes a video and returns its path; frame n is black above and grey at level 20 (n mod 12) + 8 below."""
    import av

    def make(
        num_frames: int = 12,
        rate: int = 4,
        size: tuple[int, int] = (64, 48),
        rotation: int = 0,
        name: str = "v.mp4",
        codec: str = "mpeg4",
    ) -> str:
        path = str(tmp_path / name)
        width, height = size
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for number in range(num_frames):
                pixels = np.full((height, width, 3), 20 * (number % 12) + 8, dtype=np.uint8)
                pixels[: height // 2] = 0
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return path

    return make
