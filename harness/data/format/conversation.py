"""From turns to messages: media are looked up, and objects written into the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.data.config import BboxScale
from harness.data.format.grounding import Objects, written
from harness.data.format.turn import WRITTEN, Mark, Place, Turn
from harness.data.media.image import ImageRef
from harness.data.media.reference import MediaPolicy, image_reference, video_reference
from harness.data.media.video import VideoRef
from harness.data.row import Media, Message
from harness.data.row_error import RowError


@dataclass(frozen=True, slots=True)
class Side:
    """A conversation as the row gives it: the only one, or one of a preference row's two."""

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]
    """Entries of the row's `images`, which its tags take in their order."""
    videos: tuple[Any, ...]
    objects: Objects
    prefix: str = ""
    """Before the names of its keys, in messages."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and what they show, in the order in which they show it."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    videos: tuple[VideoRef, ...]


def resolve(side: Side, policy: MediaPolicy, scale: BboxScale, origin: str, *, plain: bool = False) -> Conversation:
    """Pairs tags with media and objects.

    Args:
        side: The conversation.
        policy: Where media may come from.
        scale: How boxes are written.
        origin: The row, for messages.
        plain: Pre-training text, which is read and written by the model at once and may show media.

    Raises:
        RowError: Nothing for the model to write, media where it writes, or unequal numbers of tags and entries.
    """
    if not plain:
        _check_written(side, origin)
    side = _with_places(side, plain)
    images = tuple(image_reference(entry, origin, policy) for entry in _entries(side, Media.image, side.images, origin))
    videos = tuple(video_reference(entry, origin, policy) for entry in _entries(side, Media.video, side.videos, origin))
    _check_count(_count(side, Mark.ref), len(side.objects.refs), Mark.ref.value, f"{side.prefix}objects.ref", origin)
    _check_count(_count(side, Mark.box), len(side.objects.boxes), Mark.box.value, f"{side.prefix}objects.bbox", origin)
    texts = {Mark.ref: iter(side.objects.refs), Mark.box: iter(written(side.objects, images, scale, origin))}
    messages = tuple(Message(turn.role, _parts(turn, texts), turn.weight) for turn in side.turns)
    return Conversation(messages, images, videos)


def _check_written(side: Side, origin: str) -> None:
    answers = [turn for turn in side.turns if turn.role in WRITTEN]
    if not answers:
        kinds = f"{side.prefix}messages" if side.prefix else "the row"
        raise RowError(origin, "no assistant turn", f"no assistant turn in {kinds}, so there is nothing to learn")
    places = [piece for turn in answers for piece in turn.pieces if isinstance(piece, Place)]
    if places:
        name = places[0].kind.value
        remedy = "the model writes text only, so move it to a user turn, or give pre-training text as 'text'"
        article = "an" if places[0].kind is Media.image else "a"
        raise RowError(origin, "media in an answer", f"{article} {name} in an assistant turn; {remedy}")


def _with_places(side: Side, plain: bool) -> Side:
    """Shows what no tag shows at the beginning of the first user turn, as ms-swift does; some tags mean all tags."""
    places: list[Place] = []
    for kind, listed in ((Media.image, side.images), (Media.video, side.videos)):
        if not any(isinstance(piece, Place) and piece.kind is kind for turn in side.turns for piece in turn.pieces):
            places += [Place(kind)] * len(listed)
    first = next((number for number, turn in enumerate(side.turns) if plain or turn.role == "user"), None)
    if not places or first is None:
        return side
    turn = side.turns[first]
    shown = replace(turn, pieces=(*places, *turn.pieces))
    return replace(side, turns=(*side.turns[:first], shown, *side.turns[first + 1 :]))


def _entries(side: Side, kind: Media, listed: Sequence[Any], origin: str) -> list[Any]:
    """Returns what each place of a kind shows: what the turn names itself, or the next of the row's list."""
    places = [piece for turn in side.turns for piece in turn.pieces if isinstance(piece, Place) and piece.kind is kind]
    tags = sum(place.entry is None for place in places)
    _check_count(tags, len(listed), f"<{kind.value}>", f"{side.prefix}{kind.value}s", origin)
    rest = iter(listed)
    return [next(rest) if place.entry is None else place.entry for place in places]


def _count(side: Side, mark: Mark) -> int:
    return sum(piece is mark for turn in side.turns for piece in turn.pieces)


def _check_count(tags: int, entries: int, tag: str, key: str, origin: str) -> None:
    if tags != entries:
        detail = f"{tags} {tag} tags for {entries} {key}; write one where each is shown"
        raise RowError(origin, "unbalanced tags", detail)


def _parts(turn: Turn, texts: dict[Mark, Iterator[str]]) -> tuple[str | Media, ...]:
    """Puts objects into the text; neighbouring texts become one, so that equal turns are equal in any format."""
    parts: list[str | Media] = []
    for piece in turn.pieces:
        part = piece.kind if isinstance(piece, Place) else next(texts[piece]) if isinstance(piece, Mark) else piece
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part != "":
            parts.append(part)
    return tuple(parts)
