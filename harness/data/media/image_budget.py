"""Writes `data.image` and `data.video` into the checkpoint's processor settings, which are saved and read by inference.

`size` holds pixels under the names of edges: of one image, or of all frames of a video together.
"""

from typing import Any

from transformers.image_utils import SizeDict

from harness.data.config import ImageConfig, VideoConfig
from harness.errors import reject

VIDEO_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
"""`size` of `Qwen3VLVideoProcessor` where a checkpoint says nothing; the published ones allow 24,576 * 32 * 32."""


def set_budget(image_processor: Any, config: ImageConfig) -> None:
    """Sets the bounds on pixels per image, in place.

    Args:
        image_processor: Qwen's.
        config: Bounds in tokens; null keeps what the checkpoint has.

    Raises:
        UserError: The lower bound is over the upper one.
    """
    pixels = (image_processor.patch_size * image_processor.merge_size) ** 2
    low, high = _bounds("image", dict(image_processor.size), config, pixels)
    image_processor.size = SizeDict(shortest_edge=low, longest_edge=high)


def video_bounds(settings: dict[str, Any], config: VideoConfig) -> tuple[int, int]:
    """Returns the least and the greatest number of pixels of a video, all sampled frames together.

    A token is `temporal_patch_size` frames of `(patch_size * merge_size)^2` pixels: 2 x 32 x 32 for Qwen3-VL. As in
    transformers, an odd number of frames is measured as the multiple of 4 next to it but shown as one frame more, so
    short videos of 5, 9, ... frames can pass `max_tokens` by a part of one temporal patch.

    Args:
        settings: The checkpoint's video processor's (`Processor.video_settings`).
        config: Bounds in tokens; null keeps what the checkpoint has.

    Raises:
        UserError: The lower bound is over the upper one, or the checkpoint counts pixels in another way.
    """
    if settings.get("cap_pixels_per_frame"):
        remedy = "caps the pixels of each frame, which is not supported; set it to false in the checkpoint's settings"
        raise reject("model.path: cap_pixels_per_frame", True, remedy)
    side = settings.get("patch_size", 16) * settings.get("merge_size", 2)
    pixels = side**2 * settings.get("temporal_patch_size", 2)
    return _bounds("video", VIDEO_SIZE | (settings.get("size") or {}), config, pixels)


def set_video_budget(settings: dict[str, Any], config: VideoConfig) -> tuple[int, int]:
    """Writes the bounds and the sampling in force into a video processor's settings, in place.

    Args:
        settings: As for `video_bounds`.
        config: What to write.

    Returns:
        The bounds, as `video_bounds`.

    Raises:
        UserError: As for `video_bounds`.
    """
    low, high = video_bounds(settings, config)
    settings["size"] = {"shortest_edge": low, "longest_edge": high}
    settings |= {"fps": config.fps, "min_frames": config.min_frames, "max_frames": config.max_frames}
    # Said aloud, because transformers means to make another choice the default.
    settings["cap_pixels_per_frame"] = False
    return low, high


def _bounds(kind: str, size: dict[str, Any], config: ImageConfig | VideoConfig, pixels: int) -> tuple[int, int]:
    low, high = size["shortest_edge"], size["longest_edge"]
    low = low if config.min_tokens is None else config.min_tokens * pixels
    high = high if config.max_tokens is None else config.max_tokens * pixels
    if low > high:
        key = "max_tokens" if config.min_tokens is None else "min_tokens"
        remedy = f"{kind}s would have at least {low // pixels} and at most {high // pixels} tokens; set both bounds"
        raise reject(f"data.{kind}.{key}", getattr(config, key), remedy)
    return low, high
