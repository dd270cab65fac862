"""Entries of a row's `images` and `videos` to references. Files are looked up here, and opened later."""

import base64
import binascii
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from harness.data.media.download import fetch, is_address
from harness.data.media.image import MAX_PIXELS, ImageRef
from harness.data.media.video import VideoRef
from harness.data.row_error import RowError

MAX_FPS = 10_000
"""No video has more frames a second."""

_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """Where the images and videos of rows may come from, and how large they may be."""

    base: Path
    """Folder that relative paths start from."""
    root: Path | None = None
    """Folder that every path must stay in, symbolic links resolved; None allows any path."""
    max_pixels: int = MAX_PIXELS
    """Images, and frames of videos, of more pixels are refused."""
    cache: Path | None = None
    """Folder that keeps downloads; None refuses web addresses."""
    time_limit_s: float = 60.0
    """Longest decoding of one video."""


def image_reference(entry: Any, origin: str, policy: MediaPolicy) -> ImageRef:
    """Turns an entry of a row's `images` into a reference.

    Args:
        entry: Path, file URI, web address, base64 data URI, picture in memory, or a mapping with `bytes` (raw or
            base64), `path` or `url`.
        origin: The row, for messages.
        policy: What is allowed.

    Raises:
        RowError: Nothing that names an image, or one that is missing or not allowed.
    """
    if isinstance(entry, Image.Image):
        return ImageRef(entry, origin, policy.max_pixels)
    return ImageRef(_content(entry, "image", origin, policy), origin, policy.max_pixels)


def video_reference(entry: Any, origin: str, policy: MediaPolicy) -> VideoRef:
    """Turns an entry of a row's `videos` into a reference.

    Args:
        entry: As for an image, without pictures in memory; or a list of frames, each an image entry; or a mapping with
            `video` (any of these) or `frames` (a list), and perhaps `fps` or `sample_fps`.
        origin: The row, for messages.
        policy: What is allowed.

    Raises:
        RowError: Nothing that names a video, or one that is missing or not allowed.
    """
    fps = None
    if isinstance(entry, Mapping) and ("video" in entry or "frames" in entry):
        fps = _fps(entry, origin)
        entry = entry["frames"] if entry.get("frames") is not None else entry.get("video")
    source: str | bytes | tuple[ImageRef, ...]
    if isinstance(entry, list | tuple):
        if not entry:
            raise RowError(origin, "missing video", "a video is an empty list; give its frames")
        source = tuple(image_reference(frame, origin, policy) for frame in entry)
    else:
        source = _content(entry, "video", origin, policy)
    return VideoRef(source, origin, fps, policy.time_limit_s, policy.max_pixels)


def _fps(entry: Mapping[str, Any], origin: str) -> float | None:
    found = entry.get("fps") if entry.get("fps") is not None else entry.get("sample_fps")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= MAX_FPS:
        raise RowError(
            origin, "wrong type", f"fps of a video must be above 0 and at most {MAX_FPS}, got {str(found)[:80]!r}"
        )
    return float(found)


def _content(entry: Any, kind: str, origin: str, policy: MediaPolicy) -> str | bytes:
    """Returns the path or the content that an entry names."""
    if isinstance(entry, Mapping):
        if (content := entry.get("bytes")) is not None:
            return _bytes(content, kind, origin)
        entry = entry.get("path") if entry.get("path") is not None else entry.get("url")
    if isinstance(entry, bytes | bytearray | memoryview):
        return bytes(entry)
    if isinstance(entry, os.PathLike):
        entry = os.fspath(entry)
    if not isinstance(entry, str) or not entry:
        known = "a path, a URL, a data URI or an object with bytes, path or url"
        raise RowError(origin, "wrong type", f"a {kind} must be {known}, got {_named(entry)}")
    if entry[:5].lower() == "data:":
        if (head := _DATA_URI.match(entry)) is None:
            raise RowError(origin, "wrong type", f"a {kind} is a data URI without base64; give ';base64,'")
        return _bytes(entry[head.end() :], kind, origin)
    if is_address(entry):
        cache = None if policy.cache is None else policy.cache / "download"
        return fetch(entry, cache, origin)
    return _path(entry, kind, origin, policy)


def _bytes(content: Any, kind: str, origin: str) -> bytes:
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if not isinstance(content, str):
        raise RowError(origin, "wrong type", f"bytes of a {kind} must be bytes or base64, got {_named(content)}")
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(origin, f"broken {kind}", f"a {kind} given as data is not base64 ({error})") from error


def _path(entry: str, kind: str, origin: str, policy: MediaPolicy) -> str:
    path = _from_uri(entry) if entry[:5].lower() == "file:" else entry
    full = os.path.abspath(os.path.join(policy.base, os.path.expanduser(path)))
    if not os.path.isfile(full):
        remedy = "relative paths start from data.root, or else from the folder of the file that names them"
        shown = full[:400].encode(errors="backslashreplace").decode()
        raise RowError(origin, f"missing {kind}", f"{kind} {entry[:200]!r} does not exist ({shown}); {remedy}")
    if policy.root is not None:
        # A link below the root may lead out of it, so the file that is really opened counts, and is what is opened.
        full = os.path.realpath(full)
        if not Path(full).is_relative_to(os.path.realpath(policy.root)):
            remedy = "move it there, or set data.root=null where the rows are trusted"
            raise RowError(origin, "outside data.root", f"{kind} {entry[:200]!r} is outside {policy.root}; {remedy}")
    return full


def _from_uri(uri: str) -> str:
    """Returns the path in a file URI; that of another host is left as it stands, and so does not exist."""
    host, slash, path = uri[5:].removeprefix("//").partition("/") if uri[5:7] == "//" else ("", "", uri[5:])
    return urllib.request.url2pathname(slash + path) if host in ("", "localhost") else uri


def _named(value: Any) -> str:
    if value is None:
        return "null"
    return "an empty text" if value == "" else type(value).__name__
