"""The canonical row that every format becomes, and the checks that any row must pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.image import MAX_PIXELS, ImageRef, reference
from harness.errors import UserError

ROLES = ("system", "user", "assistant")
IMAGE_TAG = "<image>"
_UNREAD_KEYS = ("videos", "audios", "tools", "objects")
"""Keys of ms-swift's rows that change what a row means and are not read here."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    parts: tuple[str | None, ...]
    """Text, and None where the row's next image stands."""

    @property
    def text(self) -> str:
        """The turn's text without its images."""
        return "".join(part for part in self.parts if part is not None)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation and the images it shows, in the order in which it shows them."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    origin: str
    """Where it came from, for messages: `file.jsonl:12`."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a data set's builder returns."""

    train: Sequence[Row]
    val: Sequence[Row]
    fingerprint: str
    """sha256 over the content; equal fingerprints mean equal rows."""


def canonical(raw: Any, origin: str, root: Path, max_pixels: int = MAX_PIXELS) -> Row:
    """Checks a parsed row and brings it into canonical form.

    Args:
        raw: `{"messages": [...], "images": [...]}`; a content is a string, in which each `<image>` stands for the next
            of `images`, or a list of parts `{"type": "text"}` and `{"type": "image", "image": path}`.
        origin: `file:line`, with which every message begins.
        root: Folder that relative image paths start from.
        max_pixels: Decoding limit of each image.

    Raises:
        UserError: The row can not be used.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: a row must be an object, got {_kind(raw)}; JSONL has one object a line")
    if not isinstance(raw.get("messages"), list) or not raw["messages"]:
        raise UserError(f"{origin}: the row has no list of messages; its keys are {', '.join(raw) or 'none'}")
    for key in _UNREAD_KEYS:
        if raw.get(key):
            raise UserError(f"{origin}: {key!r} is not supported; remove it from the row")
    turns = [_turn(message, origin) for message in raw["messages"]]
    if all(role != "assistant" for role, _ in turns):
        raise UserError(f"{origin}: no assistant turn, so there is nothing to learn")
    if any(role == "assistant" and not isinstance(part, str) for role, parts in turns for part in parts):
        raise UserError(
            f"{origin}: an image in an assistant turn; the model writes text only, so move it to a user turn"
        )
    listed = _listed(raw.get("images"), origin)
    tags = sum(part is None for _, parts in turns for part in parts)
    if tags != len(listed):
        raise UserError(f"{origin}: {tags} {IMAGE_TAG} tags for {len(listed)} images; the numbers must be equal")
    entries = iter(listed)
    images = tuple(
        reference(next(entries) if part is None else part.entry, origin, root, max_pixels)
        for _, parts in turns
        for part in parts
        if not isinstance(part, str)
    )
    messages = tuple(
        Message(role, tuple(part if isinstance(part, str) else None for part in parts)) for role, parts in turns
    )
    return Row(messages, images, origin)


@dataclass(frozen=True, slots=True)
class _Inline:
    """An image that a content list names itself, instead of taking the next of `images`."""

    entry: Any


_Parts = list[str | _Inline | None]


def _turn(message: Any, origin: str) -> tuple[str, _Parts]:
    if not isinstance(message, dict):
        raise UserError(f"{origin}: a message must be an object with role and content, got {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{origin}: unknown role {role!r}; known: {', '.join(ROLES)}")
    unread = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if unread:
        raise UserError(f"{origin}: message key {unread[0]!r} is not supported; remove it from the row")
    content = message.get("content")
    if isinstance(content, str):
        return role, _split_tags(content)
    if not isinstance(content, list):
        raise UserError(f"{origin}: the content of a message must be a string or a list, got {_kind(content)}")
    return role, [part for item in content for part in _part(item, origin)]


def _part(item: Any, origin: str) -> _Parts:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return _split_tags(item["text"])
    if kind == "image":
        return [None if item.get("image") is None else _Inline(item["image"])]
    if kind == "image_url":
        address = item.get("image_url")
        return [_Inline(address.get("url") if isinstance(address, dict) else address)]
    remedy = '{"type": "text", "text": ...} and {"type": "image", "image": ...} are known'
    raise UserError(f"{origin}: content part {str(item)[:80]!r} can not be used; {remedy}")


def _split_tags(text: str) -> _Parts:
    """Splits text at its tags, each of which becomes None; empty pieces are left out."""
    parts: _Parts = []
    for number, piece in enumerate(text.split(IMAGE_TAG)):
        parts += [None] if number else []
        parts += [piece] if piece else []
    return parts


def _listed(images: Any, origin: str) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, str):
        return [images]
    if not isinstance(images, list):
        raise UserError(f"{origin}: images must be a list, got {_kind(images)}")
    return images


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
