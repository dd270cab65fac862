"""Fixtures of the format tests: a folder with media, and a reader of rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.data.config import BboxScale
from harness.data.format.canonical import RowFormat, canonical
from harness.data.media.reference import MediaPolicy
from harness.data.row import Row


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a.png (width 10, height 20), b.png (30 x 40), and two files that pass for videos until they are opened."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (10, 20), "red").save(folder / "a.png")
    Image.new("RGB", (30, 40), "blue").save(folder / "b.png")
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"video")
    return folder


@pytest.fixture(scope="session")
def make_format(media_folder: Path) -> Callable[..., RowFormat]:
    def make(bbox: BboxScale = BboxScale.norm1000, **columns: str) -> RowFormat:
        return RowFormat(MediaPolicy(base=media_folder), columns, bbox)

    return make


@pytest.fixture(scope="session")
def read(make_format: Callable[..., RowFormat]) -> Callable[..., Row]:
    """Reads a row with the origin `f:9`; keywords are as for `make_format`."""

    def read_row(raw: Any, **how: Any) -> Row:
        return canonical(raw, "f:9", make_format(**how))

    return read_row
