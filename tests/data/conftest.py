"""Fixtures of the data tests: the tiny checkpoint's tokenizer and image processor, and files to read."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import harness
from harness.data.media.image import ImageRef
from harness.data.row import Media, Message, Row

CHECKPOINT = Path(harness.__file__).parent / "model" / "tiny_checkpoint"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return CHECKPOINT


@pytest.fixture(scope="session")
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="session")
def _image_processor() -> Any:
    # Not AutoImageProcessor: in transformers 5.17 it asks for torchvision whatever the backend.
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(CHECKPOINT)


@pytest.fixture
def tokenizer(_tokenizer: Any) -> Any:
    """A copy that the test may change."""
    return copy.deepcopy(_tokenizer)


@pytest.fixture
def image_processor(_image_processor: Any) -> Any:
    """A copy that the test may change."""
    return copy.deepcopy(_image_processor)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows, or lines as they stand, to a JSONL file and returns its path."""

    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Draws noise, the same for the same size."""

    def draw(width: int, height: int, mode: str = "RGB") -> Image.Image:
        noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(noise).convert(mode)

    return draw


@pytest.fixture
def make_row(picture: Callable[..., Image.Image]) -> Callable[..., Row]:
    """Makes a row from (role, part, part, ...) turns; a (width, height) part is an image of that size."""

    def make(*turns: tuple, origin: str = "rows.jsonl:1") -> Row:
        messages = [
            Message(role, tuple(p if isinstance(p, str) else Media.image for p in parts)) for role, *parts in turns
        ]
        sizes = [part for _, *parts in turns for part in parts if not isinstance(part, str)]
        images = tuple(ImageRef(picture(*size), origin) for size in sizes)
        return Row(messages=tuple(messages), images=images, origin=origin)

    return make
