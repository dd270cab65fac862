"""Images and videos of a split: how large they are, and what the bounds on their tokens make of them."""

from typing import Any

import numpy as np

from harness.doctor import spread
from harness.doctor.split import Split
from harness.doctor.wording import counted


def image_tokens(split: Split) -> np.ndarray:
    """Returns the tokens of each image of the rows in use."""
    media, grids, _ = _of_used_rows(split)
    return grids[media[:, 0] == 0].astype(np.int64).prod(axis=1) // split.samples.encoder.pixels.merge_size**2


def measure(split: Split) -> dict[str, Any]:
    """Returns sizes before and after resizing, of the rows in use, for doctor.json."""
    media, grids, limits = _of_used_rows(split)
    pixels = split.samples.encoder.pixels
    sides = grids[:, 1:] * pixels.patch_size
    tokens = grids.astype(np.int64).prod(axis=1) // pixels.merge_size**2
    stills, videos = media[:, 0] == 0, media[:, 0] > 0
    shrunk, enlarged = _resized(split, media[stills], limits[stills])
    return {
        "images": {
            "number": int(stills.sum()),
            "shrunk": shrunk,
            "enlarged": enlarged,
            "spread": {
                "width": spread.measure(media[stills, 2]),
                "height": spread.measure(media[stills, 1]),
                "width as the model sees it": spread.measure(sides[stills, 1]),
                "height as the model sees it": spread.measure(sides[stills, 0]),
                "tokens": spread.measure(tokens[stills]),
            },
        },
        "videos": {
            "number": int(videos.sum()),
            "spread": {
                "frames": spread.measure(media[videos, 0]),
                "width": spread.measure(media[videos, 2]),
                "height": spread.measure(media[videos, 1]),
                "width as the model sees it": spread.measure(sides[videos, 1]),
                "height as the model sees it": spread.measure(sides[videos, 0]),
                "tokens": spread.measure(tokens[videos]),
            },
        },
    }


def show(name: str, visual: dict[str, Any]) -> None:
    """Prints sizes, and how many images the bounds change."""
    images, videos = visual["images"], visual["videos"]
    if images["number"]:
        changed = f"{images['shrunk']:,} shrunk and {images['enlarged']:,} enlarged by the bounds on their tokens"
        title = f"{name}: {counted(images['number'], 'image')}, {changed}"
        spread.show(title, "per image", images["spread"], total=False)
    if videos["number"]:
        spread.show(f"{name}: {counted(videos['number'], 'video')}", "per video", videos["spread"], total=False)


def _of_used_rows(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (M, 3) frames, height, width; (M, 3) patches; (M, 2) the row's own bounds in pixels."""
    samples, arrays = split.samples, split.samples.store.arrays
    used = np.zeros(len(samples.store), dtype=bool)
    used[samples.row] = True
    per_row = np.diff(arrays.media_bounds)
    mask = np.repeat(used, per_row)
    return arrays.media[mask], samples.grids[mask], np.repeat(arrays.pixel_limits, per_row, axis=0)[mask]


def _resized(split: Split, stills: np.ndarray, limits: np.ndarray) -> tuple[int, int]:
    """Counts images that a bound made smaller, and larger; each size is looked at once."""
    sizes, counts = np.unique(np.concatenate([stills[:, 1:], limits], axis=1), axis=0, return_counts=True)
    number = {"shrunk": 0, "enlarged": 0}
    for (height, width, low, high), count in zip(sizes.tolist(), counts.tolist(), strict=True):
        fate = split.samples.encoder.pixels.resized(height, width, low or None, high or None)
        if fate is not None:
            number[fate] += count
    return number["shrunk"], number["enlarged"]
