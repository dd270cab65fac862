"""Encoded rows to samples: images and videos get their tokens, rows over the limit are cut, pixels are loaded.

Shapes: S tokens, N supervised spans, M images and videos, P vision patches, D values a patch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.data.config import Truncation
from harness.data.features.lookup import Found, Lookup
from harness.data.media.image import ImageRef
from harness.data.media.patches import PixelMaker
from harness.data.media.video import VideoRef, VideoShape
from harness.data.row import Row
from harness.data.row_error import RowError
from harness.data.template import mrope
from harness.data.template.text import TextEncoder, TextSample, blocks, channel_key, shown
from harness.data.template.truncation import cut, split
from harness.errors import UserError

OVER_MAX_LENGTH = "over max_length"
MEDIA_OVER_MAX_LENGTH = "an image or video alone over max_length"
NOTHING_SUPERVISED = "no supervised token"
NOTHING_LEFT = "no supervised token left by the cut"


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A row, or a piece of one, as the model reads it, less its pixels."""

    ids: np.ndarray
    """(S,) int32, image and video tokens expanded."""
    spans: np.ndarray
    """(N, 2) int32: half-open [start, end) of each supervised run of tokens; no start is 0."""
    weights: np.ndarray
    """(N,) float32: loss weight of each span."""
    grids: np.ndarray
    """(M, 3) int32: t, h, w of each image and video in patches."""
    media: tuple[ImageRef | VideoRef, ...]
    """What it shows, in the order of the text."""
    origin: str
    num_visual: int
    """Image and video tokens among `ids`."""
    sizes: np.ndarray
    """(M, 3) int32: frames (0 for an image), height and width in pixels, as they were when it was tokenised."""
    piece_of_more: bool = False
    """The row was cut."""
    channel: int = 0
    """Which of `data.channels` it belongs to, counted from 1; 0 for none of them."""

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that can not be used as configured; it is counted, never replaced."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedSample:
    """An encoded sample with what the loader's workers add."""

    sample: EncodedSample
    position_ids: np.ndarray
    """(4, S) int64."""
    pixel_values: torch.Tensor | None
    """(P, D) float32 of the images and videos whose features are not cached; None without any."""
    found: tuple[Found, ...] | None = None
    """What the cache has of each image and video; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class PromptSample:
    """A row up to its last assistant turn, for generation."""

    sample: EncodedSample
    """Without supervised spans; ends with the generation prompt."""
    text: str
    """The rendered prompt, each image as one image token."""
    reference: str
    """Text of the last assistant turn."""


class Encoder:
    """Everything between a row and its tensors; travels to the loader's workers."""

    def __init__(
        self,
        text: TextEncoder,
        pixels: PixelMaker,
        *,
        max_length: int | None = None,
        truncation: Truncation = Truncation.delete,
        vision_side: int,
        channels: Sequence[str] = (),
    ) -> None:
        """Keeps the two halves.

        Args:
            text: Template and tokenizer.
            pixels: Image processor, with the pixel budgets set.
            max_length: Longest sample in tokens; None takes the tokenizer's `model_max_length`.
            truncation: What happens to longer ones.
            vision_side: Side of the vision tower's learned grid of positions.
            channels: Channels that samples are told apart by.
        """
        self.text = text
        self.vision_side = vision_side
        self.pixels = pixels
        self.max_length: int = max_length if max_length is not None else text.tokenizer.model_max_length
        self.truncation = truncation
        self.channels = {channel_key(name): number for number, name in enumerate(channels, start=1)}
        pad_token_id = text.tokenizer.pad_token_id
        if pad_token_id is None:
            raise UserError("model.path: the checkpoint's tokenizer has no padding token")
        self.pad_token_id: int = pad_token_id
        # Tokens of a timestamp: a video's first one stands before its first vision mark and goes with it.
        self._num_timestamp = len(text.tokenizer("<0.0 seconds>", add_special_tokens=False)["input_ids"])

    def encode(self, row: Row) -> list[EncodedSample] | Dropped:
        """Encodes one row: to one sample, to several where it is split, or to none.

        Raises:
            RowError: The row can not be used, or is over the limit where that ends the run.
        """
        found = self.text.encode_many([row])[0]
        if isinstance(found, RowError):
            raise found
        grids = self.grids(found.media, found.pixel_bounds)
        pieces = self.pieces(found, grids, row.origin)
        if isinstance(pieces, Dropped):
            return pieces
        return [self.sample(found, grids, row, piece, row.origin) for piece in pieces]

    def encode_prompt(self, row: Row) -> PromptSample:
        """Encodes what stands before the last assistant turn, and the generation prompt; never truncated.

        Raises:
            RowError: The row can not be rendered, or begins with its only assistant turn.
        """
        found, text, reference = self.text.encode_prompt(row)
        grids = self.grids(found.media, found.pixel_bounds)
        return PromptSample(self.sample(found, grids, row, None, row.origin), text, reference)

    def grids(self, media_M3: np.ndarray, pixel_bounds: tuple[int, int]) -> np.ndarray:
        """Returns (M, 3) int32: t, h, w in patches that each image and video becomes."""
        low, high = pixel_bounds[0] or None, pixel_bounds[1] or None
        made = []
        for frames, height, width in media_M3.tolist():
            if frames:
                made.append(self.pixels.video_grid(VideoShape(frames, height, width, ())))
            else:
                made.append(self.pixels.image_grid(height, width, low, high))
        return np.array(made, dtype=np.int32).reshape(-1, 3)

    def pieces(self, found: TextSample, grids_M3: np.ndarray, origin: str) -> list[tuple[int, int] | None] | Dropped:
        """Returns what becomes of a row: [None] to keep it whole, or half-open ranges of its expanded tokens.

        Raises:
            RowError: It is over the limit, and `data.truncation=raise`.
        """
        if not len(found.spans):
            return Dropped(origin, NOTHING_SUPERVISED)
        repeats = self._repeats(found, grids_M3)
        length = int(repeats.sum())
        if length <= self.max_length:
            return [None]
        if self.truncation is Truncation["raise"]:
            detail = f"{length:,} tokens, more than max_length={self.max_length:,}; raise it or set data.truncation"
            raise RowError(origin, OVER_MAX_LENGTH, detail)
        if self.truncation is Truncation.delete:
            return Dropped(origin, OVER_MAX_LENGTH)
        blocks_M2 = self._blocks(found, repeats)
        if self.truncation is Truncation.split:
            cuts = split(length, blocks_M2, self.max_length)
            if cuts is None:
                return Dropped(origin, MEDIA_OVER_MAX_LENGTH)
        else:
            cuts = [cut(length, blocks_M2, self.max_length, self.truncation is Truncation.left)]
        ends_S = np.cumsum(repeats)
        kept: list[tuple[int, int] | None] = [piece for piece in cuts if _supervised(found, ends_S, piece)]
        return kept or Dropped(origin, NOTHING_LEFT)

    def sample(
        self, found: TextSample, grids_M3: np.ndarray, row: Row | None, piece: tuple[int, int] | None, origin: str
    ) -> EncodedSample:
        """Expands a tokenised row.

        Args:
            found: The row, tokenised.
            grids_M3: What `grids` says of it.
            row: The row itself, for its images and videos; None where it has none.
            piece: Half-open range of the expanded tokens; None for the whole.
            origin: `file.jsonl:12`.

        Raises:
            RowError: The row no longer shows what it showed when it was tokenised.
        """
        repeats = self._repeats(found, grids_M3)
        new_index = np.concatenate([[0], np.cumsum(repeats)])
        ids, spans, weights = np.repeat(found.ids, repeats), new_index[found.spans], found.weights
        media = [] if row is None else shown(row)[: len(found.media)]
        if len(media) != len(found.media):
            raise RowError(origin, "changed", "the row changed while the run was using it")
        grids, sizes = grids_M3, found.media
        if piece is not None:
            kept = [piece[0] <= start and end <= piece[1] for start, end in self._blocks(found, repeats).tolist()]
            media = [item for item, keep in zip(media, kept, strict=True) if keep]
            grids, sizes = grids[kept], sizes[kept]
            ids = ids[piece[0] : piece[1]]
            spans = np.clip(spans - piece[0], (1, 0), len(ids))
            alive = spans[:, 0] < spans[:, 1]
            spans, weights = spans[alive], weights[alive]
        num_visual = int(grids.prod(axis=1).sum()) // self.pixels.merge_size**2
        return EncodedSample(
            ids,
            spans.astype(np.int32),
            weights,
            grids,
            tuple(media),
            origin,
            num_visual,
            sizes,
            piece is not None,
            self.channels.get(found.channel, 0),
        )

    def load(self, sample: EncodedSample, lookup: Lookup | None = None) -> LoadedSample:
        """Adds position ids and pixels.

        Args:
            sample: What to load.
            lookup: A cache of features; what it has is not decoded.

        Raises:
            RowError: An image or video is damaged, or its file changed since its header was read.
        """
        frames = np.repeat(sample.grids, sample.grids[:, 0], axis=0)
        frames[:, 0] = 1
        visual_S = self.text.is_visual(sample.ids)
        positions = mrope.position_ids(visual_S, frames, self.pixels.merge_size)
        grids = [tuple(grid) for grid in sample.grids.tolist()]
        found = None
        if lookup is not None:
            unit = self.pixels.merge_size**2
            pairs = zip(sample.media, grids, strict=True)
            found = tuple(lookup.find(ref, grid, math.prod(grid) // unit) for ref, grid in pairs)
        return LoadedSample(sample, positions, self._patches(sample, grids, found), found)

    def _patches(
        self, sample: EncodedSample, grids: list[tuple[int, int, int]], found: tuple[Found, ...] | None
    ) -> torch.Tensor | None:
        parts = []
        for number, (ref, grid, size) in enumerate(zip(sample.media, grids, sample.sizes.tolist(), strict=True)):
            if found is None or found[number].features is None:
                parts.append(torch.from_numpy(self._values(ref, grid, size, sample.origin)))
        return None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts)

    def _values(self, ref: ImageRef | VideoRef, grid: tuple[int, int, int], size: list[int], origin: str) -> np.ndarray:
        changed = RowError(origin, "changed", "an image or video changed while the run was using it")
        if isinstance(ref, VideoRef):
            frames = ref.frames(self.text.sampling, self.pixels.pixel_size(grid))
            if len(frames) != size[0]:
                raise changed
            return self.pixels.video_patches(frames, grid)
        image = ref.load()
        if [image.height, image.width] != size[1:]:
            raise changed
        return self.pixels.image_patches(image, grid)

    def _repeats(self, found: TextSample, grids_M3: np.ndarray) -> np.ndarray:
        """Returns how many tokens each stored token stands for (S,)."""
        repeats_S = np.ones(len(found.ids), dtype=np.int64)
        if len(grids_M3):
            tokens_M = grids_M3[:, 1:].astype(np.int64).prod(axis=1) // self.pixels.merge_size**2
            repeats_S[self.text.is_visual(found.ids)] = np.repeat(tokens_M, blocks(found.media))
        return repeats_S

    def _blocks(self, found: TextSample, repeats_S: np.ndarray) -> np.ndarray:
        """Returns (M, 2): the expanded range of each image and video with its vision marks and timestamps."""
        places = np.flatnonzero(self.text.is_visual(found.ids))
        ends = np.cumsum(blocks(found.media)) if len(found.media) else np.empty(0, dtype=np.int64)
        starts = ends - blocks(found.media)
        new_index = np.concatenate([[0], np.cumsum(repeats_S)])
        timestamp = np.where(found.media[:, 0] > 0, self._num_timestamp, 0)
        first = np.maximum(places[starts] - 1 - timestamp, 0) if len(places) else places
        last = np.minimum(places[ends - 1] + 2, len(found.ids)) if len(places) else places
        return np.stack([new_index[first], new_index[last]], axis=1)


def _supervised(found: TextSample, ends_S: Sequence[int] | np.ndarray, piece: tuple[int, int]) -> int:
    """Counts the supervised tokens of a piece whose predecessor is in it too."""
    new_index = np.concatenate([[0], ends_S])
    spans = np.clip(new_index[found.spans] - piece[0], (1, 0), piece[1] - piece[0])
    return int(np.maximum(spans[:, 1] - spans[:, 0], 0).sum())
