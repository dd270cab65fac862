"""Settings that every data set shares; a data set's own config adds fields to `DataConfig`."""

from dataclasses import dataclass, field
from enum import Enum

from harness.errors import reject


class Truncation(Enum):
    """What happens to a row of more than `max_length` tokens."""

    delete = "delete"
    left = "left"
    right = "right"


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """How many tokens an image becomes; one is `(patch_size * merge_size)^2` pixels, 32 x 32 for Qwen3-VL."""

    min_tokens: int | None = None
    """Smaller images are enlarged to at least this many tokens; null keeps the checkpoint's bound."""
    max_tokens: int | None = None
    """Larger images are shrunk to at most this many tokens; null keeps the checkpoint's bound."""
    max_pixels_decoded: int = 100_000_000
    """Images of more pixels are refused by their header, undecoded: a file of 7 KB can unpack to gigabytes."""

    def __post_init__(self) -> None:
        for key in ("min_tokens", "max_tokens", "max_pixels_decoded"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise reject(f"data.image.{key}", value, "give at least 1")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise reject("data.image.min_tokens", self.min_tokens, f"is over data.image.max_tokens={self.max_tokens}")


@dataclass(kw_only=True, slots=True)
class GenerationConfig:
    """Validation by greedy generation: the share of answers that equal the reference exactly."""

    enabled: bool = False
    """Generate answers to the validation rows; each row's last assistant turn is the reference."""
    max_new_tokens: int = 32
    """Longest answer, in tokens, its end token included."""
    max_samples: int | None = None
    """Generate for the first this many validation rows; null takes them all."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise reject("data.generation.max_new_tokens", self.max_new_tokens, "give at least 1")
        if self.max_samples is not None and self.max_samples < 1:
            raise reject("data.generation.max_samples", self.max_samples, "give at least 1, or null for all rows")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What does not depend on where the rows come from. Extend it by fields only."""

    max_length: int | None = None
    """Longest row in tokens, image tokens included; null means as many as the tokenizer says the model takes."""
    truncation: Truncation = Truncation.delete
    """Rows over max_length: delete drops and counts them; left and right cut text tokens, never an image."""
    packing: bool = False
    """Fill rows of packing_length tokens with several samples, each seeing itself alone. A batch then counts packs."""
    packing_length: int | None = None
    """Tokens of a pack; null takes max_length. Longer samples are over max_length."""
    padding_free: bool = False
    """Join the samples of a micro-batch into one row instead of padding them to the longest."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Tokens per image and the decoding limit."""
    workers: int = 2
    """Processes per device that decode images ahead of the training step; 0 decodes between steps."""
    shuffle: bool = True
    """New order of the training rows each epoch, drawn from the run's seed; false keeps the order of the files."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Exact-match validation by generation."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise reject("data.max_length", self.max_length, "give at least 1, or null for the model's own limit")
        if self.packing and self.padding_free:
            raise reject("data.padding_free", "true", "packing has no padding to save; set one of the two")
        if self.packing and self.packing_length is None and self.max_length is None:
            raise reject("data.packing_length", "null", "say how many tokens a pack holds, for example 8192")
        if self.packing_length is not None and not self.packing:
            raise reject("data.packing_length", self.packing_length, "has no effect without data.packing=true")
        if self.packing_length is not None and self.packing_length < 1:
            raise reject("data.packing_length", self.packing_length, "give at least 1")
        if self.workers < 0:
            raise reject("data.workers", self.workers, "give 0 or more")

    def longest_sample(self) -> int | None:
        """Returns the longest row allowed in tokens: that of a pack, where it is shorter."""
        limits = [limit for limit in (self.max_length, self.packing_length) if limit is not None]
        return min(limits) if limits else None

    def pack_length(self) -> int | None:
        """Returns the tokens of a pack, or None without packing."""
        return (self.packing_length or self.max_length) if self.packing else None
