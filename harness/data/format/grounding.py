"""Grounding: the row's `objects`, written where `<ref-object>` and `<bbox>` stand.

A box becomes `[x1, y1, x2, y2]` and a point `[x, y]`, in thousandths of the image's width and height: the numbers that
Qwen3-VL writes behind `bbox_2d` and `point_2d` in the JSON of its 2D grounding recipe. Names are written as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.config import BboxScale
from harness.data.format.value import excerpt, is_empty, is_number, kind, structured, text
from harness.data.media.image import ImageRef
from harness.data.row_error import RowError


@dataclass(frozen=True, slots=True)
class Objects:
    """What a row names and where it is."""

    refs: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    """x1, y1, x2, y2 of a box with its corners in order, or x, y of a point."""
    in_pixels: bool = True
    """Pixels of the image as it is stored (`real`), or shares of its width and height (`norm1`)."""
    image_ids: tuple[int, ...] = ()
    """Which of the row's images each box lies in."""


def read(value: Any, origin: str, what: str = "objects") -> Objects:
    """Reads `{"ref": [...], "bbox": [...], "bbox_type": "real", "image_id": [...]}`.

    Raises:
        RowError: With the first thing that can not be used.
    """
    value = structured(value, origin, what) if value else value
    if is_empty(value):
        return Objects()
    if not isinstance(value, dict):
        raise RowError(origin, "wrong type", f"{what} must be an object with ref and bbox, got {kind(value)}")
    refs = tuple(text(ref, origin, f"a ref of {what}") for ref in _list(value, "ref", origin))
    boxes = tuple(_box(box, origin) for box in _list(value, "bbox", origin))
    unit = value.get("bbox_type") or "real"
    if unit not in ("real", "norm1"):
        remedy = "real (pixels) and norm1 (0 to 1) are known; data.bbox=none leaves other numbers as they stand"
        raise RowError(origin, "wrong type", f"bbox_type {excerpt(unit)} is unknown; {remedy}")
    return Objects(refs, boxes, unit == "real", _image_ids(value, len(boxes), origin))


def written(objects: Objects, images: Sequence[ImageRef], scale: BboxScale, origin: str) -> list[str]:
    """Returns the text of each box.

    Args:
        objects: Of the row.
        images: Of the row, in order; those with boxes in pixels are opened for their size.
        scale: What the model sees.
        origin: The row, for messages.

    Raises:
        RowError: A box in no image of the row, or outside its image.
    """
    if scale is BboxScale.none:
        return [json.dumps(box) for box in objects.boxes]
    found = []
    for box, image_id in zip(objects.boxes, objects.image_ids, strict=True):
        if objects.in_pixels and not 0 <= image_id < len(images):
            detail = f"a box lies in image {image_id} and the row shows {len(images)}; image_id counts from 0"
            raise RowError(origin, "box outside its image", detail)
        height, width = images[image_id].size() if objects.in_pixels else (1, 1)
        numbers = [round(1000 * at / (height if index % 2 else width)) for index, at in enumerate(box)]
        if not all(0 <= number <= 1000 for number in numbers):
            where = f"its image of {width} x {height} pixels" if objects.in_pixels else "0 to 1 (bbox_type norm1)"
            remedy = "give x1, y1, x2, y2 with the right bbox_type and image_id"
            raise RowError(origin, "box outside its image", f"box {json.dumps(box)} is outside {where}; {remedy}")
        found.append(json.dumps(numbers))
    return found


def _list(objects: dict[str, Any], key: str, origin: str) -> Sequence[Any]:
    value = objects.get(key)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise RowError(origin, "wrong type", f"{key} of objects must be a list, got {kind(value)}")
    return value


def _box(box: Any, origin: str) -> tuple[float, ...]:
    if not isinstance(box, (list, tuple)) or len(box) not in (2, 4) or not all(is_number(at) for at in box):
        detail = "each bbox of objects must be a list of 2 or 4 numbers: x, y or x1, y1, x2, y2"
        raise RowError(origin, "wrong type", detail)
    if len(box) == 2:
        return tuple(box)
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    return left, top, right, bottom


def _image_ids(objects: dict[str, Any], num_boxes: int, origin: str) -> tuple[int, ...]:
    ids = _list(objects, "image_id", origin) or (0,) * num_boxes
    if len(ids) != num_boxes or not all(is_number(one) and isinstance(one, int) for one in ids):
        detail = f"image_id of objects must be one integer for each of the {num_boxes} boxes"
        raise RowError(origin, "wrong type", detail)
    return tuple(ids)
