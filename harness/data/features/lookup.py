"""What the loader's workers ask before they decode an image."""

from dataclasses import dataclass

from torch import Tensor

from harness.data.features.entry import DamagedError
from harness.data.features.key import media_key
from harness.data.features.store import Store
from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache has of one image or video."""

    key: str | None
    """Under which its features are to be kept; None where its file can not be read."""
    tokens: int
    """F, its visual tokens."""
    features: Tensor | None
    """(F, L, E); None where they are to be computed."""
    damaged: bool = False
    """There was an entry, and it was no good."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The reading side; travels to the workers."""

    store: Store
    prefix: str
    """Of all keys: the tower and the pixel settings."""

    def find(self, ref: ImageRef | VideoRef, grid: tuple[int, int, int], tokens: int) -> Found:
        """Looks an image or video up; nothing is decoded.

        Args:
            ref: The image or video.
            grid: t, h, w in patches that it becomes.
            tokens: Visual tokens that it becomes.

        Raises:
            RowError: A picture in memory can not be used.
        """
        try:
            key = media_key(self.prefix, ref, grid)
        except OSError:  # decoding says what is wrong with the file
            return Found(None, tokens, None)
        try:
            features_FLE = self.store.read(key)
        except DamagedError:
            return Found(key, tokens, None, damaged=True)
        assert features_FLE is None or len(features_FLE) == tokens, "the key holds the grid"
        return Found(key, tokens, features_FLE)
