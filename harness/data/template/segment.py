"""Rendered text in pieces of one loss weight each, cut where each answer begins.

Each piece is tokenised by itself. A cut stands behind every answer's header, as generation has it: an answer that
begins with a line break would otherwise merge with the header's into one token that belongs to both.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.data.row import Media

HEADER = "<|im_start|>assistant\n"
"""What the chat template, and its generation prompt, write in front of an answer."""
SYSTEM_HEADER = "<|im_start|>system\n"
END = "<|im_end|>"
"""What ends a turn; of an answer it is learnt."""
PLACEHOLDER = {
    Media.image: "<|vision_start|><|image_pad|><|vision_end|>",
    Media.video: "<|vision_start|><|video_pad|><|vision_end|>",
}
"""What stands for an image or a video before their number of tokens is known."""

_PLACEHOLDERS = re.compile("(" + "|".join(map(re.escape, PLACEHOLDER.values())) + ")")

Piece = tuple[str, float]
"""Text and its loss weight."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the rendered text."""

    text: str
    weight: float
    """Loss weight of its tokens; 0 for no loss."""


def merge(pieces: Iterable[Piece]) -> list[Segment]:
    """Joins neighbours of equal weight and leaves out empty pieces."""
    merged = []
    text, weight = "", 0.0
    for more, other in pieces:
        if other == weight:
            text += more
        elif more:
            if text:
                merged.append(Segment(text, weight))
            text, weight = more, other
    if text:
        merged.append(Segment(text, weight))
    return merged


def without_media(pieces: Iterable[Piece]) -> list[Piece]:
    """Takes the weight off images and videos: the model never writes one."""
    return [
        (part, 0.0 if number % 2 else weight)
        for text, weight in pieces
        for number, part in enumerate(_PLACEHOLDERS.split(text))
    ]


def cut_answers(text: str) -> tuple[list[str], list[str]] | None:
    """Cuts rendered text where answers begin and end.

    Returns:
        What stands around the answers, one more than there are answers, all but the last ending with the header; and
        the answers, without their end tokens. None where an answer has no end.
    """
    around, *parts = text.split(HEADER)
    outside, answers = [around], []
    for part in parts:
        answer, end, around = part.partition(END)
        if not end:
            return None
        outside[-1] += HEADER
        outside.append(around)
        answers.append(answer)
    return outside, answers


def divide(answer: str, texts: Sequence[str]) -> list[str] | None:
    """Finds the parts of an answer in what the chat template made of it.

    Parts are looked for from the end, since templates that leave out or tidy up reasoning do so at the beginning.

    Args:
        answer: The rendered answer.
        texts: What the parts were before.

    Returns:
        The parts as rendered, which joined give the answer; white space that the template put between two belongs to
        the later one. None where they can not be found.
    """
    limit = len(answer)
    ends = []
    for number in reversed(range(len(texts))):
        end = _end_of(texts[number], answer, limit)
        if end is None:
            if number:
                return None
            end = _beginning_left_out(texts[0], answer, limit)
        ends.append(end)
        limit = end - len(texts[number])
    edges = [0, *reversed(ends[1:]), len(answer)]
    return [answer[start:end] for start, end in pairwise(edges)]


def _beginning_left_out(text: str, answer: str, limit: int) -> int:
    """Returns where the first part ends of which only the end is left, or the limit where it is rewritten."""
    kept = answer[:limit]
    while not text.endswith(kept) and kept[-1:].isspace():
        kept = kept[:-1]
    return len(kept) if text.endswith(kept) else limit


def _end_of(text: str, answer: str, limit: int) -> int | None:
    """Returns where a text ends that stands in front of a limit, but for white space."""
    end = limit
    while not answer.endswith(text, 0, end):
        if not end or not answer[end - 1].isspace():
            return None
        end -= 1
    return end
