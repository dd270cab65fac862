"""Writes `data.image` into the checkpoint's image processor, which is saved with the run and read by inference."""

from typing import Any

from transformers.image_utils import SizeDict

from harness.data.config import ImageConfig
from harness.errors import reject


def set_budget(image_processor: Any, config: ImageConfig) -> None:
    """Sets the bounds on pixels per image, in place.

    Args:
        image_processor: Qwen's; its `size` holds the bounds in pixels under the names of edges.
        config: Bounds in tokens; null keeps what the checkpoint has.

    Raises:
        UserError: The lower bound is over the upper one.
    """
    pixels = (image_processor.patch_size * image_processor.merge_size) ** 2
    low, high = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    low = low if config.min_tokens is None else config.min_tokens * pixels
    high = high if config.max_tokens is None else config.max_tokens * pixels
    if low > high:
        key = "max_tokens" if config.min_tokens is None else "min_tokens"
        remedy = f"images would have at least {low // pixels} and at most {high // pixels} tokens; set both bounds"
        raise reject(f"data.image.{key}", getattr(config, key), remedy)
    image_processor.size = SizeDict(shortest_edge=low, longest_edge=high)
