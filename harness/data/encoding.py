"""Row to token ids and supervised spans, from text and image headers alone; pixels follow in the loader's workers.

Shapes: S tokens, N images (or spans), P vision patches, D values a patch.
"""

import re
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from harness.data import mrope
from harness.data.config import Truncation
from harness.data.image import ImageRef
from harness.data.row import Message, Row
from harness.data.truncation import cut
from harness.errors import UserError

IMAGE_TOKEN = "<|image_pad|>"
ANSWER_HEADER = "<|im_start|>assistant\n"
ANSWER_END = "<|im_end|>"
OVER_MAX_LENGTH = "over max_length"


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A row as the model reads it, less its pixels."""

    ids: np.ndarray
    """(S,) int32, image tokens expanded."""
    spans: np.ndarray
    """(N, 2) int32: half-open [start, end) of each supervised run of tokens; no start is 0."""
    grids: np.ndarray
    """(N, 3) int32: t, h, w of each image in patches."""
    images: tuple[ImageRef, ...]
    origin: str
    num_visual: int
    """Image tokens among `ids`."""
    truncated: bool = False

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
    """(P, D) float32; None without images."""


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
    """Applies a checkpoint's chat template, tokenizer and image processor to rows."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        *,
        max_length: int | None = None,
        truncation: Truncation = Truncation.delete,
    ) -> None:
        """Looks up the tokens that the encoding rests on.

        Args:
            tokenizer: The checkpoint's, with its chat template.
            image_processor: The checkpoint's, with the pixel budget set (`image_budget.set_budget`).
            max_length: Longest sample in tokens; None takes the tokenizer's `model_max_length`.
            truncation: What happens to longer ones.

        Raises:
            UserError: The tokenizer lacks a chat template or a token that Qwen3-VL's format needs.
        """
        if tokenizer.chat_template is None:
            raise UserError("model.path: the checkpoint's tokenizer has no chat template, so rows can not be rendered")
        if tokenizer.pad_token_id is None:
            raise UserError("model.path: the checkpoint's tokenizer has no padding token")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.max_length = max_length if max_length is not None else tokenizer.model_max_length
        self.truncation = truncation
        self.merge_size: int = image_processor.merge_size
        self.pad_token_id: int = tokenizer.pad_token_id
        self.image_token_id = _token_id(tokenizer, IMAGE_TOKEN)
        self._end_id = _token_id(tokenizer, ANSWER_END)
        markers = [_token_id(tokenizer, token) for token in ("<|vision_start|>", "<|vision_end|>")]
        self._protected_ids = np.array([self.image_token_id, *markers])
        self._control = re.compile("|".join(map(re.escape, sorted(_control_tokens(tokenizer), key=len, reverse=True))))

    def encode(self, row: Row) -> EncodedSample | Dropped:
        """Encodes a whole row; each assistant turn with its end token is supervised, and nothing else.

        Raises:
            UserError: The row can not be rendered as it stands.
        """
        sample = self._encode(row, self._render(row, row.messages, add_generation_prompt=False))
        turns = sum(message.role == "assistant" for message in row.messages)
        if len(sample.spans) != turns:
            raise UserError(f"{row.origin}: the chat template renders {len(sample.spans)} of {turns} assistant turns")
        return sample if len(sample.ids) <= self.max_length else self._shorten(sample)

    def encode_prompt(self, row: Row) -> PromptSample:
        """Encodes what stands before the last assistant turn, and the generation prompt; never truncated.

        Raises:
            UserError: The row can not be rendered, or begins with its only assistant turn.
        """
        last = max(i for i, message in enumerate(row.messages) if message.role == "assistant")
        messages = row.messages[:last]
        if not messages:
            raise UserError(f"{row.origin}: begins with its only assistant turn, so there is no prompt to answer")
        # Images behind the last answer belong to no prompt.
        num_images = sum(part is None for message in messages for part in message.parts)
        prompt = Row(messages, row.images[:num_images], row.origin)
        text = self._render(prompt, messages, add_generation_prompt=True)
        # The generation prompt opens an answer that has no end: earlier answers' spans carry no loss here either.
        return PromptSample(self._encode(prompt, text, supervised=False), text, row.messages[last].text)

    def load(self, sample: EncodedSample) -> LoadedSample:
        """Adds position ids and pixels."""
        positions = mrope.position_ids(sample.ids, sample.grids, self.image_token_id, self.merge_size)
        return LoadedSample(sample, positions, self.pixels(sample))

    def pixels(self, sample: EncodedSample) -> torch.Tensor | None:
        """Decodes the images of a sample to float32 patches of shape (P, D); None where it has no image.

        Raises:
            UserError: An image is damaged, or its file changed since its header was read.
        """
        if not sample.images:
            return None
        out = self.image_processor(images=[image.load() for image in sample.images], return_tensors="pt")
        if not np.array_equal(out["image_grid_thw"].numpy(), sample.grids):
            raise UserError(f"{sample.origin}: an image changed its size while the run was using it")
        return out["pixel_values"]

    def grid(self, image: ImageRef) -> tuple[int, int, int]:
        """Returns (t, h, w) in patches that the image processor will make of an image, from its header."""
        height, width = image.size()
        patch, bounds = self.image_processor.patch_size, self.image_processor.size
        low, high = bounds["shortest_edge"], bounds["longest_edge"]
        height, width = smart_resize(height, width, patch * self.merge_size, min_pixels=low, max_pixels=high)
        return 1, height // patch, width // patch

    def _render(self, row: Row, messages: tuple[Message, ...], *, add_generation_prompt: bool) -> str:
        for number, message in enumerate(messages, start=1):
            if found := self._control.search(message.text):
                what = f"message {number} contains the control token {found[0]!r}"
                raise UserError(f"{row.origin}: {what}, which would be read as a marker; remove it or space it out")
        turns: Any = [{"role": message.role, "content": _content(message)} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            raise UserError(f"{row.origin}: the chat template refuses the row ({error})") from error
        return str(text)

    def _encode(self, row: Row, text: str, *, supervised: bool = True) -> EncodedSample:
        ids, starts = self._tokenise(text)
        spans = self._spans(ids, starts, row) if supervised else np.empty((0, 2), dtype=np.int32)
        placeholder = ids == self.image_token_id
        if (shown := int(placeholder.sum())) != len(row.images):
            what = f"the chat template shows {shown} of {len(row.images)} images"
            raise UserError(f"{row.origin}: {what}; Qwen's shows those in user turns only, so move them there")
        grids = np.array([self.grid(image) for image in row.images], dtype=np.int32).reshape(-1, 3)
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[placeholder] = grids.prod(axis=1) // self.merge_size**2
        new_index = np.concatenate([[0], np.cumsum(repeats)])
        num_visual = int(repeats[placeholder].sum())
        ids, spans = np.repeat(ids, repeats), new_index[spans].astype(np.int32)
        return EncodedSample(ids, spans, grids, row.images, row.origin, num_visual)

    def _tokenise(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids and where each answer begins.

        The text is cut behind each answer's header, as in generation: an answer that begins with a line break would
        otherwise merge with the header's into one token that belongs to both.
        """
        *heads, tail = text.split(ANSWER_HEADER)
        pieces = [head + ANSWER_HEADER for head in heads] + ([tail] if tail else [])
        tokens = self.tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)
        parts = [np.array(part, dtype=np.int32) for part in tokens["input_ids"]]
        return np.concatenate(parts), np.cumsum([len(part) for part in parts])[: len(heads)]

    def _spans(self, ids: np.ndarray, starts: np.ndarray, row: Row) -> np.ndarray:
        """Pairs each answer's start with the position behind its end token."""
        ends = np.flatnonzero(ids == self._end_id) + 1
        after = np.searchsorted(ends, starts, side="right")
        if len(starts) and (after[-1] == len(ends) or (np.diff(after) == 0).any()):
            raise UserError(f"{row.origin}: the chat template does not end an assistant turn with {ANSWER_END}")
        return np.stack([starts, ends[after]], axis=1).astype(np.int32)

    def _shorten(self, sample: EncodedSample) -> EncodedSample | Dropped:
        if self.truncation is Truncation.delete:
            return Dropped(sample.origin, OVER_MAX_LENGTH)
        protected = np.isin(sample.ids, self._protected_ids)
        parts = cut(sample.ids, sample.spans, protected, self.max_length, self.truncation is Truncation.left)
        if parts is None:
            return Dropped(sample.origin, "with images alone over max_length")
        ids, spans = parts
        if not len(spans):
            return Dropped(sample.origin, "with no supervised token left by the cut")
        return EncodedSample(ids, spans, sample.grids, sample.images, sample.origin, sample.num_visual, truncated=True)


def _content(message: Message) -> str | list[dict[str, str]]:
    """Returns a content that templates of text-only models take too, where there is no image."""
    if None not in message.parts:
        return message.text
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in message.parts]


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise UserError(f"model.path: the checkpoint's tokenizer has no token {token}, so it is no Qwen3-VL")
    return token_id


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens that give a conversation its structure; grounding marks such as `<|box_start|>` are content."""
    template = str(tokenizer.chat_template)
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in tokens if token in template or token in (tokenizer.eos_token, tokenizer.pad_token)]
