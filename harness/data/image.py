"""References to images: size from the header alone, pixels when a worker needs them.

The header's size is the size that decoding will give: both turn the picture as its EXIF orientation says.
"""

import base64
import binascii
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from harness.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Only these are opened: some of Pillow's other formats start outside programs (EPS) or can not be checked."""
MAX_PIXELS = 100_000_000
"""Default of `data.image.max_pixels_decoded`."""
MAX_ASPECT_RATIO = 200
"""Qwen's `smart_resize` refuses images that are longer."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow raises on damaged files, by format and place of the damage."""
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the transposition that undoes it; from 5 on, height and width change places."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of one row."""

    source: str | bytes | Image.Image
    """Path, content of a file, or a picture in memory."""
    origin: str
    """Row that shows it, for messages: `file.jsonl:12`."""
    max_pixels: int = MAX_PIXELS
    """Refused above this many, by the header."""

    def size(self) -> tuple[int, int]:
        """Returns (height, width) in pixels without decoding.

        Raises:
            UserError: Not an image, over the pixel limit or too long for the model.
        """
        with self._opened() as (image, orientation):
            width, height = image.size
            return (width, height) if orientation >= 5 else (height, width)

    def load(self) -> Image.Image:
        """Decodes to RGB, turned as EXIF says; what is transparent becomes white.

        Raises:
            UserError: As for `size`, or the file is damaged.
        """
        with self._opened() as (image, orientation):
            try:
                image.load()
            except _BROKEN as error:
                raise self._error(f"can not be decoded ({error})") from error
            turned = image.transpose(_TURN[orientation]) if orientation in _TURN else image
            return _rgb(turned)

    def num_bytes(self) -> int:
        """Size of the encoded image; of a picture in memory, its number of pixels."""
        if isinstance(self.source, str):
            return os.path.getsize(self.source)
        return len(self.source) if isinstance(self.source, bytes) else self.source.width * self.source.height

    @contextmanager
    def _opened(self) -> Iterator[tuple[Image.Image, int]]:
        if isinstance(self.source, Image.Image):
            self._check(self.source)
            yield self.source, 1
            return
        # The limit here is ours; Pillow's own would warn at one size and raise at another, whatever the config says.
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            file = self.source if isinstance(self.source, str) else io.BytesIO(self.source)
            image = Image.open(file, formats=FORMATS)
        except _BROKEN as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"not one of {', '.join(FORMATS)}"
            raise self._error(f"can not be opened: {reason}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
        with image:
            self._check(image)
            try:
                orientation = _orientation(image)
            except _BROKEN as error:
                raise self._error(f"has broken EXIF data ({error})") from error
            yield image, orientation

    def _check(self, image: Image.Image) -> None:
        width, height = image.size
        if width * height > self.max_pixels:
            limit = f"{self.max_pixels:,} (data.image.max_pixels_decoded)"
            raise self._error(f"has {width:,} x {height:,} pixels, more than {limit}; shrink it")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise self._error(f"is {width} x {height}: its aspect ratio is over {MAX_ASPECT_RATIO}; crop it")
        if image.mode[0] in "IF":
            raise self._error(f"has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")

    def _error(self, what: str) -> UserError:
        name = repr(self.source) if isinstance(self.source, str) else "in the row"
        return UserError(f"{self.origin}: image {name} {what}")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF files itself, in `size` and in decoding
    # PNG's own getexif decodes the picture to look for a late chunk, which `size` must not do.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def reference(entry: Any, origin: str, root: Path, max_pixels: int = MAX_PIXELS) -> ImageRef:
    """Turns an entry of a row's `images` into a reference.

    Args:
        entry: Path, data URI, or a mapping with `bytes` (raw or base64) or `path`.
        origin: The row, for messages.
        root: Folder that relative paths start from.
        max_pixels: Decoding limit.

    Raises:
        UserError: Nothing that names an image, a file that does not exist, or a web address.
    """
    if isinstance(entry, dict) and entry.get("bytes") is not None:
        content = entry["bytes"]
        return ImageRef(content if isinstance(content, bytes) else _decode(content, origin), origin, max_pixels)
    path = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(path, str) or not path:
        raise UserError(f"{origin}: an image must be a path, a data URI or an object with bytes or path")
    if path.startswith("data:"):
        return ImageRef(_decode(path.partition(",")[2], origin), origin, max_pixels)
    if path.startswith(("http://", "https://")):
        raise UserError(f"{origin}: image {path[:200]!r} is a web address; download it and give its path")
    full = os.path.join(root, path)
    if not os.path.isfile(full):
        remedy = "relative paths start from data.root, or else from the folder of the JSONL file"
        raise UserError(f"{origin}: image {path[:200]!r} does not exist ({full[:400]}); {remedy}")
    return ImageRef(full, origin, max_pixels)


def _decode(text: Any, origin: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"{origin}: an image given as data is not base64 ({error})") from error
