"""Pictures and frames to the patches that the vision tower reads, in numpy and Pillow alone.

An image's patches are those of `Qwen2VLImageProcessorPil` to 1e-6, in a third of its time; their order, for videos
too, is that of `Qwen3VLVideoProcessor.patchify`. Frames are resized by Pillow's bicubic filter, one by one. That
processor uses torchvision's antialiased one, which rounds otherwise: on noise a few values differ by one or two of
255 levels.

Shapes: P patches, D = C T A A values a patch; C channels, T frames a patch, A side of a patch, M merge size, H and W
pixels, h and w patches, t temporal patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video

from harness.data.media.video import VideoShape
from harness.errors import reject

Grid = tuple[int, int, int]
"""t, h, w in patches."""


class PixelMaker:
    """Grids and patches under one checkpoint's settings. It can be pickled."""

    def __init__(self, image_processor: Any, video_size: tuple[int, int]) -> None:
        """Takes over the processor's settings as they stand.

        Args:
            image_processor: Qwen's, with the pixel budget set (`image_budget.set_budget`).
            video_size: Bounds on a video's pixels, all frames together (`image_budget.video_bounds`).

        Raises:
            UserError: The checkpoint's processor does not resize images, so grids can not be planned.
        """
        if not image_processor.do_resize or not image_processor.do_convert_rgb:
            remedy = "its image processor must have do_resize and do_convert_rgb on"
            raise reject("model.path", image_processor.__class__.__name__, remedy)
        self.patch_size: int = image_processor.patch_size
        self.merge_size: int = image_processor.merge_size
        self.temporal_patch_size: int = image_processor.temporal_patch_size
        self.image_size: tuple[int, int] = (image_processor.size["shortest_edge"], image_processor.size["longest_edge"])
        self.video_size = video_size
        self._resample = Image.Resampling(int(image_processor.resample))
        self._scale_C, self._shift_C = _affine(image_processor)

    def settings(self) -> list[Any]:
        """Returns what the values of patches depend on besides picture and grid."""
        sides = [self.patch_size, self.merge_size, self.temporal_patch_size]
        return [*sides, self._resample.name, self._scale_C.tolist(), self._shift_C.tolist()]

    def image_grid(self, height: int, width: int, min_pixels: int | None = None, max_pixels: int | None = None) -> Grid:
        """Returns the patches that an image becomes.

        Args:
            height: Of the upright image.
            width: Of the upright image.
            min_pixels: The row's own lower bound; None takes the checkpoint's.
            max_pixels: The row's own upper bound; None takes the checkpoint's.
        """
        low, high = self._bounds(min_pixels, max_pixels)
        factor = self.patch_size * self.merge_size
        height, width = smart_resize(height, width, factor, min_pixels=low, max_pixels=high)
        return 1, height // self.patch_size, width // self.patch_size

    def resized(
        self, height: int, width: int, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> str | None:
        """Returns `shrunk` or `enlarged` for an image that a bound changes; rounding to whole patches is neither."""
        low, high = self._bounds(min_pixels, max_pixels)
        factor = self.patch_size * self.merge_size
        pixels = round(height / factor) * round(width / factor) * factor**2
        return "shrunk" if pixels > high else "enlarged" if pixels < low else None

    def video_grid(self, shape: VideoShape) -> Grid:
        """Returns the patches that a video becomes; an incomplete temporal patch is filled with its last frame."""
        num_frames = max(shape.num_frames, self.temporal_patch_size)
        height, width = smart_resize_video(
            num_frames,
            shape.height,
            shape.width,
            temporal_factor=self.temporal_patch_size,
            factor=self.patch_size * self.merge_size,
            min_pixels=self.video_size[0],
            max_pixels=self.video_size[1],
        )
        return math.ceil(num_frames / self.temporal_patch_size), height // self.patch_size, width // self.patch_size

    def pixel_size(self, grid: Grid) -> tuple[int, int]:
        """Returns (height, width) of the resized picture that a grid is cut from; `VideoRef.frames` takes it."""
        return grid[1] * self.patch_size, grid[2] * self.patch_size

    def image_patches(self, image: Image.Image, grid: Grid) -> np.ndarray:
        """Returns (P, D) float32; the still image stands in each frame of its temporal patch.

        Args:
            image: RGB.
            grid: As `image_grid` tells it for this image.
        """
        out = self._empty(grid)
        self._write(self._fit(image, grid), out[0])
        return self._flat(out)

    def video_patches(self, frames: Sequence[np.ndarray], grid: Grid) -> np.ndarray:
        """Returns (P, D) float32.

        Args:
            frames: (H, W, 3) uint8 each, RGB; those of another size than `pixel_size(grid)` are resized.
            grid: As `video_grid` tells it for these frames.
        """
        assert 0 <= grid[0] * self.temporal_patch_size - len(frames) < self.temporal_patch_size
        out = self._empty(grid)
        for index in range(grid[0] * self.temporal_patch_size):
            t, at = divmod(index, self.temporal_patch_size)
            frame = frames[min(index, len(frames) - 1)]
            self._write(self._fit(Image.fromarray(frame), grid), out[t], slice(at, at + 1))
        return self._flat(out)

    def _bounds(self, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
        """A row's bound counts, and takes the checkpoint's other one along where the two would cross."""
        low, high = self.image_size
        if min_pixels is not None:
            low, high = min_pixels, max(high, min_pixels)
        if max_pixels is not None:
            low, high = min(low, max_pixels), max_pixels
        return low, high

    def _fit(self, image: Image.Image, grid: Grid) -> Image.Image:
        height, width = self.pixel_size(grid)
        return image if image.size == (width, height) else image.resize((width, height), self._resample)

    def _empty(self, grid: Grid) -> np.ndarray:
        """Returns room for (t, h/M, w/M, M, M, C, T, A) rows of A values, each row one element."""
        t, h, w = grid
        m, a = self.merge_size, self.patch_size
        return np.empty((t, h // m, w // m, m, m, 3, self.temporal_patch_size, a), dtype=self._row_type)

    @property
    def _row_type(self) -> str:
        """A row of a patch as one element: moving 16 values at once is what makes this fast."""
        return f"V{4 * self.patch_size}"

    def _write(self, image: Image.Image, out: np.ndarray, frames: slice = slice(None)) -> None:
        """Writes a picture into one temporal patch of `_empty`, at some of its frames."""
        m, a = self.merge_size, self.patch_size
        for channel, plane in enumerate(image.split()):
            values_HW = np.asarray(plane).astype(np.float32)
            values_HW *= self._scale_C[channel]
            values_HW += self._shift_C[channel]
            rows = values_HW.view(self._row_type).reshape(out.shape[0], m, a, out.shape[1], m)
            out[:, :, :, :, channel, frames] = rows.transpose(0, 3, 1, 4, 2)[:, :, :, :, None]

    def _flat(self, out: np.ndarray) -> np.ndarray:
        depth = 3 * self.temporal_patch_size * self.patch_size**2
        return out.reshape(-1).view(np.float32).reshape(-1, depth)


def _affine(image_processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Joins rescaling and normalisation into one factor and one summand a channel."""
    scale = np.full(3, image_processor.rescale_factor if image_processor.do_rescale else 1.0)
    mean, deviation = np.zeros(3), np.ones(3)
    if image_processor.do_normalize:
        mean, deviation = np.array(image_processor.image_mean), np.array(image_processor.image_std)
    return (scale / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)
