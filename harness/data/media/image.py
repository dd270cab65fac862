"""References to images: size from the header alone, pixels when a worker needs them.

The header's size is the size that decoding will give: both turn the picture as its EXIF orientation says.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import ExifTags, Image

from harness.data.media import image_header
from harness.data.row_error import RowError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Only these are opened: some of Pillow's other formats start outside programs (EPS) or can not be checked."""
MAX_PIXELS = 100_000_000
"""Default of `data.image.max_pixels_decoded`."""
MAX_ASPECT_RATIO = 200
"""Qwen's `smart_resize` refuses images that are longer."""

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

    @property
    def path(self) -> str | None:
        """The file, where the image is one."""
        return self.source if isinstance(self.source, str) else None

    def stamp(self) -> tuple[int, int] | None:
        """Returns (bytes, modification time in ns) of a file, by which a cache sees that it changed; else None.

        Raises:
            RowError: The file is not there.
        """
        if self.path is None:
            return None
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise self._unopened(error) from error
        return status.st_size, status.st_mtime_ns

    def size(self) -> tuple[int, int]:
        """Returns (height, width) in pixels from the header alone.

        Raises:
            RowError: Not an image, over the pixel limit, or too long for the model.
        """
        if isinstance(self.source, Image.Image):
            self._check(self.source)
            return self.source.height, self.source.width
        return self._size(self._ends()[0])

    def probe(self) -> tuple[int, int]:
        """Returns `size`, and finds files that break off: only those that lack their format's end are decoded.

        Raises:
            RowError: As for `load`, but damage in the middle of a file shows in `load` alone.
        """
        if isinstance(self.source, Image.Image):
            return self.size()
        head, tail, num_bytes = self._ends()
        size = self._size(head)
        if not image_header.is_complete(head, tail, num_bytes):
            self.load()
        return size

    def load(self) -> Image.Image:
        """Decodes to RGB, turned as EXIF says; what is transparent becomes white.

        Raises:
            RowError: As for `size`, or the file is damaged.
        """
        with self._opened() as (image, orientation):
            try:
                image.load()
                return _rgb(image.transpose(_TURN[orientation]) if orientation in _TURN else image)
            except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
                raise self._error("broken image", f"can not be decoded ({error})") from error

    def _ends(self) -> tuple[bytes, bytes, int]:
        """Returns the first and the last bytes of the file, and its length."""
        if isinstance(self.source, bytes):
            head, tail = self.source[: image_header.HEAD_BYTES], self.source[-image_header.TAIL_BYTES :]
            return head, tail, len(self.source)
        assert isinstance(self.source, str)
        try:
            with open(self.source, "rb", buffering=0) as file:
                head = file.read(image_header.HEAD_BYTES)
                if len(head) < image_header.HEAD_BYTES:
                    return head, head[-image_header.TAIL_BYTES :], len(head)
                num_bytes = file.seek(-image_header.TAIL_BYTES, os.SEEK_END) + image_header.TAIL_BYTES
                return head, file.read(image_header.TAIL_BYTES), num_bytes
        except (OSError, ValueError) as error:
            raise self._unopened(error) from error

    def _size(self, head: bytes) -> tuple[int, int]:
        if (size := image_header.read_size(head)) is not None:
            self._check_size(*size)
            return size
        with self._opened() as (image, orientation):
            return (image.width, image.height) if orientation in (5, 6, 7, 8) else (image.height, image.width)

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
        except Exception as error:  # as in `load`
            raise self._unopened(error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
        with image:
            self._check(image)
            try:
                orientation = _orientation(image)
            except Exception as error:
                raise self._error("broken image", f"has broken EXIF data ({error})") from error
            yield image, orientation

    def _check(self, image: Image.Image) -> None:
        self._check_size(image.height, image.width)
        if image.mode[0] in "IF":
            what = f"has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits"
            raise self._error("wrong type", what)

    def _check_size(self, height: int, width: int) -> None:
        if width * height > self.max_pixels:
            limit = f"{self.max_pixels:,} (data.image.max_pixels_decoded)"
            raise self._error("too large", f"has {width:,} x {height:,} pixels, more than {limit}; shrink it")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            what = f"is {width} x {height}: its aspect ratio is over {MAX_ASPECT_RATIO}; crop it"
            raise self._error("aspect ratio", what)

    def _unopened(self, error: Exception) -> RowError:
        if isinstance(error, FileNotFoundError):
            return self._error("missing image", "can not be opened: no such file")
        if isinstance(error, OSError) and error.errno is not None:
            return self._error("broken image", f"can not be opened: {error.strerror}")
        return self._error("broken image", f"can not be opened: not one of {', '.join(FORMATS)}")

    def _error(self, reason: str, what: str) -> RowError:
        name = repr(self.source) if isinstance(self.source, str) else "in the row"
        return RowError(self.origin, reason, f"image {name} {what}")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF files itself, in `size` and in decoding
    # PNG's own getexif decodes the picture to look for a late chunk, which `size` must not do.
    return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))


def _rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
