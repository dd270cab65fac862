"""Broken and hostile image files, each in a row beside a good one; what Pillow can not decode must not be used."""

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from fuzz_reader import Note, Reader, Run, as_line
from fuzz_rows import write
from PIL import Image


def images(home: Path) -> Run:
    """Makes cases of broken images, each in a row of its own between good ones."""
    reader = Reader(home)

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        note["kind"], content, suffix, used = draw.choice(PICTURES)(draw)
        (folder / f"picture{suffix}").write_bytes(content)
        used = used if used is not None else None if _decodes(content) else False
        row = {"query": "<image>what?", "response": "this", "images": [str(folder / f"picture{suffix}")]}
        lines: list[tuple[bytes, bool | None]] = [(as_line(reader.good(draw)), True), (as_line(row), used)]
        draw.shuffle(lines)
        write(folder / "rows.jsonl", [line for line, _ in lines], draw)
        reader.judge(folder / "rows.jsonl", lines)

    return run


def _decodes(content: bytes) -> bool:
    """Whether Pillow alone makes a picture of it: what it can not decode must not be used."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > 100_000_000:
                return False
            picture.load()
        return True
    except Exception:
        return False
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _picture(draw: random.Random) -> tuple[bytes, str]:
    """Returns a good file of some format and mode, and its suffix."""
    form, mode = draw.choice(
        (
            ("PNG", "RGB"),
            ("PNG", "P"),
            ("PNG", "LA"),
            ("PNG", "1"),
            ("JPEG", "RGB"),
            ("JPEG", "L"),
            ("JPEG", "CMYK"),
            ("WEBP", "RGBA"),
            ("GIF", "P"),
            ("BMP", "RGB"),
            ("TIFF", "RGB"),
            ("TIFF", "CMYK"),
            ("PNG", "RGBA"),
        )
    )
    noise = Image.effect_noise((draw.choice((17, 40, 64)), draw.choice((16, 33, 50))), 60)
    return _saved(noise.convert(mode), form), f".{form.lower()}"


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    made = io.BytesIO()
    picture.save(made, form, **options)
    return made.getvalue()


Picture = tuple[str, bytes, str, bool | None]
"""What was done, the file, its suffix, and whether it is to be used; None asks Pillow."""


def _flipped(draw: random.Random) -> Picture:
    content, suffix = _picture(draw)
    changed, reach = bytearray(content), draw.choice((64, 256, len(content)))
    for _ in range(draw.choice((1, 1, 2, 5, 30))):
        changed[draw.randrange(min(reach, len(changed)))] ^= 1 << draw.randrange(8)
    return "flipped bits", bytes(changed), suffix, None


def _cut(draw: random.Random) -> Picture:
    content, suffix = _picture(draw)
    return "cut off", content[: draw.randrange(len(content))], suffix, None


def _grown(draw: random.Random) -> Picture:
    content, suffix = _picture(draw)
    place = draw.randrange(len(content))
    return "bytes put in", content[:place] + draw.randbytes(draw.choice((1, 4, 400))) + content[place:], suffix, None


def _no_picture(draw: random.Random) -> Picture:
    junk = (
        b"",
        b"\0",
        b"\0" * 5000,
        draw.randbytes(300),
        b"<svg/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08\xff\xff",
    )
    return "no picture", draw.choice(junk), draw.choice((".png", ".jpg", "", ".txt")), False


def _wrong_suffix(draw: random.Random) -> Picture:
    content, _ = _picture(draw)
    return "wrong suffix", content, draw.choice((".png", ".jpg", ".gif", ".txt", "", ".mp4")), True


def _shape(draw: random.Random) -> Picture:
    (width, height), used = draw.choice(
        (
            ((1, 1), True),
            ((1, 200), True),
            ((200, 1), True),
            ((1, 201), False),
            ((2000, 9), False),
            ((3, 1), True),
            ((1, 60000), False),
        )
    )
    return "odd shapes", _saved(Image.new("RGB", (width, height)), "PNG"), ".png", used


def _mode(draw: random.Random) -> Picture:
    small = Image.effect_noise((20, 20), 50)
    frames = [small.convert("P"), Image.new("P", (20, 20), 3)]
    made = (
        (_saved(small.convert("I;16"), "PNG"), False),
        (_saved(small.convert("F"), "TIFF"), False),
        (_saved(small.convert("I"), "TIFF"), False),
        (_saved(small.convert("CMYK"), "JPEG"), True),
        (_saved(small.convert("P"), "PNG", transparency=3), True),
        (_saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), True),
        (_saved(small.convert("RGBA"), "WEBP", save_all=True, append_images=[small.convert("RGBA")]), True),
        (_saved(small.convert("LA"), "PNG"), True),
        (_saved(small.convert("1"), "TIFF"), True),
    )
    content, used = draw.choice(made)
    return "modes and frames", content, ".png", used


def _turned(draw: random.Random) -> Picture:
    exif = Image.Exif()
    exif[0x0112] = draw.choice((0, 1, 3, 6, 8, 9, 65535))
    content = bytearray(
        _saved(Image.effect_noise((40, 24), 50).convert("RGB"), draw.choice(("JPEG", "PNG")), exif=exif)
    )
    for _ in range(draw.choice((0, 1, 2, 6))):
        place = content.find(b"Exif") + draw.randrange(40) if b"Exif" in content else draw.randrange(33, 90)
        content[min(place, len(content) - 1)] = draw.randrange(256)
    return "broken EXIF", bytes(content), ".jpg", None


def _bomb(draw: random.Random) -> Picture:
    side = draw.choice((20_000, 60_000, 2**31 - 1))
    if draw.random() < 0.3:  # a header that says more than there is
        return "bombs", _png(8_000, 8_000, zlib.compress(b"\0" * 1000)), ".png", False
    return "bombs", _png(side, side, zlib.compress(b"\0" * 10_000_000, 9)), ".png", False


def _png(width: int, height: int, content: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


PICTURES = (_flipped, _flipped, _flipped, _cut, _cut, _grown, _no_picture, _wrong_suffix, _shape, _mode, _turned, _bomb)
