"""Rows to token ids and supervised spans, before images and videos get their size: what the cache keeps.

An image is one placeholder token here, a video one for each pair of frames, each pair behind its timestamp. How many
tokens each becomes depends on `data.image` and `data.video` and is worked out later (`encoder.py`, `samples.py`), so a
change of the pixel budget costs no tokenising. No torch here: spawned processes import this file.

A video's own pair of vision marks gives way to one pair for each two frames, as in the format that Qwen3-VL was
released with and that vLLM writes; the processor of transformers 5 leaves the outer pair around them.

Shapes: S tokens, N supervised spans, M images and videos.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef, VideoSampling
from harness.data.row import Media, Row
from harness.data.row_error import RowError
from harness.data.template.render import Renderer
from harness.data.template.segment import PLACEHOLDER, Segment
from harness.errors import UserError

START, END = "<|vision_start|>", "<|vision_end|>"
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"


@dataclass(frozen=True, slots=True)
class TextSample:
    """A tokenised row with the sizes of what it shows."""

    ids: np.ndarray
    """(S,) int32; one placeholder for an image, and for each two frames of a video."""
    spans: np.ndarray
    """(N, 2) int32: half-open [start, end) of each supervised run; no start is 0, none holds a placeholder."""
    weights: np.ndarray
    """(N,) float32: loss weight of each span."""
    media: np.ndarray
    """(M, 3) int32, in order of appearance: frames sampled (0 for an image), height and width in pixels."""
    pixel_bounds: tuple[int, int]
    """The row's own `min_pixels` and `max_pixels`; 0 for none."""
    channel: int = 0
    """`channel_key` of the row's channel."""


class TextEncoder:
    """Applies a checkpoint's chat template and tokenizer."""

    def __init__(self, tokenizer: Any, renderer: Renderer, sampling: VideoSampling) -> None:
        """Looks up the tokens that the encoding rests on.

        Args:
            tokenizer: The checkpoint's, a fast one.
            renderer: With the settings of the template.
            sampling: Which frames of a video are seen.

        Raises:
            UserError: The tokenizer lacks a token that Qwen3-VL's format needs.
        """
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.sampling = sampling
        self.image_token_id = _token_id(tokenizer, IMAGE_TOKEN)
        self.video_token_id = _token_id(tokenizer, VIDEO_TOKEN)
        self.start_token_id = _token_id(tokenizer, START)
        self.end_token_id = _token_id(tokenizer, END)

    def encode_many(self, rows: Sequence[Row]) -> list[TextSample | RowError]:
        """Encodes rows, each for itself: an error takes the place of a row that can not be used."""
        found = [
            self._sized(row, segments) for row, segments in zip(rows, self.renderer.render_many(rows), strict=True)
        ]
        texts = [segment.text for item in found if not isinstance(item, RowError) for segment in item[0]]
        tokens = iter(self._tokenise(texts))
        samples: list[TextSample | RowError] = []
        for row, item in zip(rows, found, strict=True):
            if isinstance(item, RowError):
                samples.append(item)
            else:
                segments, media = item
                samples.append(self._sample(row, segments, [next(tokens) for _ in segments], media))
        return samples

    def encode_prompt(self, row: Row) -> tuple[TextSample, str, str]:
        """Encodes what stands before the last answer, without supervised spans.

        Returns:
            The sample, the rendered prompt, and the answer.

        Raises:
            RowError: The row can not be rendered, or begins with its only answer.
        """
        text, reference = self.renderer.render_prompt(row)
        sized = self._sized(row, (Segment(text, 0.0),), text.count(IMAGE_TOKEN), text.count(VIDEO_TOKEN))
        if isinstance(sized, RowError):
            raise sized
        segments, media = sized
        sample = self._sample(row, segments, self._tokenise([segment.text for segment in segments]), media)
        if isinstance(sample, RowError):
            raise sample
        return sample, text, reference

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _sized(
        self, row: Row, segments: tuple[Segment, ...] | RowError, images: int | None = None, videos: int | None = None
    ) -> tuple[tuple[Segment, ...], np.ndarray] | RowError:
        """Looks at the headers of what the row shows, or its first few, and writes each video's frames out."""
        if isinstance(segments, RowError) or not (row.images or row.videos):
            return segments if isinstance(segments, RowError) else (segments, np.empty((0, 3), dtype=np.int32))
        try:
            stills = [(0, *ref.probe()) for ref in row.images[:images]]
            shapes = [ref.probe(self.sampling) for ref in row.videos[:videos]]
        except RowError as error:
            return error
        image, video = iter(stills), iter((shape.num_frames, shape.height, shape.width) for shape in shapes)
        kinds = appearance(row)[: len(stills) + len(shapes)]
        media = [next(image) if kind is Media.image else next(video) for kind in kinds]
        if shapes:
            segments = _write_frames(segments, [shape.timestamps for shape in shapes])
        return segments, np.array(media, dtype=np.int32).reshape(-1, 3)

    def _sample(
        self, row: Row, segments: tuple[Segment, ...], tokens: list[list[int]], media: np.ndarray
    ) -> TextSample | RowError:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        weights: list[float] = []
        for segment, part in zip(segments, tokens, strict=True):
            start, end = max(len(ids), 1), len(ids) + len(part)
            ids += part
            if segment.weight and start < end:
                spans.append((start, end))
                weights.append(segment.weight)
        ids_S = np.array(ids, dtype=np.int32)
        if len(media):
            shown = int(self.is_visual(ids_S).sum())
            if shown != (expected := int(blocks(media).sum())):
                detail = f"{shown} places for images and frames in the rendered text, {expected} in the row"
                return RowError(row.origin, "unbalanced tags", detail)
        bounds = (row.min_pixels or 0, row.max_pixels or 0)
        return TextSample(
            ids_S,
            np.array(spans, np.int32).reshape(-1, 2),
            np.array(weights, np.float32),
            media,
            bounds,
            channel_key(row.channel),
        )

    def is_visual(self, ids_S: np.ndarray) -> np.ndarray:
        """Returns True where a token stands for part of an image or video."""
        return (ids_S == self.image_token_id) | (ids_S == self.video_token_id)


def channel_key(name: str | None) -> int:
    """Returns a number of 64 bits that stands for a channel in the cache, whatever `data.channels` says; 0 for none."""
    if name is None:
        return 0
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)


def appearance(row: Row) -> list[Media]:
    """Returns the kinds of what the row shows, in the order of the text."""
    return [part for message in row.messages for part in message.parts if isinstance(part, Media)]


def shown(row: Row) -> list[ImageRef | VideoRef]:
    """Returns what the row shows, in the order of the text."""
    images, videos = iter(row.images), iter(row.videos)
    return [next(images) if kind is Media.image else next(videos) for kind in appearance(row)]


def blocks(media_M3: np.ndarray) -> np.ndarray:
    """Returns the placeholders of each image (1) and video (one for each two frames)."""
    return np.maximum(-(-media_M3[:, 0] // 2), 1)


def _write_frames(segments: tuple[Segment, ...], timestamps: Sequence[tuple[float, ...]]) -> tuple[Segment, ...]:
    """Puts a timestamp and a placeholder for each two frames in the place of each video."""
    videos = iter(timestamps)
    written = []
    for segment in segments:
        head, *tails = segment.text.split(PLACEHOLDER[Media.video])
        for tail in tails:
            head += "".join(f"<{time:.1f} seconds>{PLACEHOLDER[Media.video]}" for time in next(videos, ())) + tail
        written.append(Segment(head, segment.weight))
    return tuple(written)


def _token_id(tokenizer: Any, token: str) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise UserError(f"model.path: the checkpoint's tokenizer has no token {token}, so it is no Qwen3-VL")
    return int(token_id)
