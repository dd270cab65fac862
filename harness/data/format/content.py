"""Contents of a turn: a string with tags, a list of OpenAI's content parts, or the object of a tool."""

import re
from typing import Any

from harness.data.format.turn import Mark, Piece, Place
from harness.data.format.value import excerpt, is_empty, kind, text, to_json
from harness.data.row import Media
from harness.data.row_error import RowError

_MEANING: dict[str, Piece] = {
    "<image>": Place(Media.image),
    "<video>": Place(Media.video),
    Mark.ref.value: Mark.ref,
    Mark.box.value: Mark.box,
}
_TAG = re.compile("|".join(_MEANING))
_MEDIA_PARTS = {
    "image": Media.image,
    "image_url": Media.image,
    "video": Media.video,
    "video_url": Media.video,
}
_FRAME_RATES = ("fps", "sample_fps")
"""Keys of a video part that say how many frames a second its list of frames has."""
_TOOL_ROLES = ("tool_call", "tool_response")


def pieces(value: Any, role: str, origin: str) -> tuple[Piece, ...]:
    """Reads the content of a turn.

    Args:
        value: A string, in which tags stand for media and objects, or a list of parts; what a tool is asked or answers
            may be an object, which is written as JSON.
        role: Who speaks, in our words.
        origin: The row, for messages.

    Raises:
        RowError: Another type, or a part that can not be used.
    """
    if isinstance(value, str):
        return split(text(value, origin, "the content of a message"))
    if role in _TOOL_ROLES and isinstance(value, (dict, list)) and not _is_parts(value):
        return split(to_json(value, origin, f"the content of a {role} message"))
    if not isinstance(value, (list, tuple)):
        detail = f"the content of a message must be a string or a list, got {kind(value)}"
        raise RowError(origin, "wrong type", detail)
    return tuple(piece for item in value for piece in _part(item, origin))


def split(value: str) -> tuple[Piece, ...]:
    """Splits a text at its tags; empty pieces are left out."""
    if "<" not in value:
        return (value,) if value else ()
    found: list[Piece] = []
    end = 0
    for tag in _TAG.finditer(value):
        found += [value[end : tag.start()], _MEANING[tag.group()]]
        end = tag.end()
    return tuple(piece for piece in (*found, value[end:]) if piece != "")


def _is_parts(value: Any) -> bool:
    """Whether the content of a tool is a list of parts and no JSON list of its own."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and _known(item.get("type")) for item in value)


def _known(name: Any) -> bool:
    return isinstance(name, str) and (name == "text" or name in _MEDIA_PARTS)


def _part(item: Any, origin: str) -> tuple[Piece, ...]:
    name: Any = item.get("type") if isinstance(item, dict) else None
    if not _known(name):
        remedy = "parts are objects of type text, image, image_url, video or video_url"
        shown = f"of type {excerpt(name)}" if isinstance(item, dict) else excerpt(item)
        raise RowError(origin, "wrong type", f"a content part {shown} can not be used; {remedy}")
    rates = {key: item[key] for key in _FRAME_RATES if name == "video" and not is_empty(item.get(key))}
    for key, value in item.items():
        if key not in ("type", name, *rates) and not is_empty(value):
            detail = f"{excerpt(key)} of a content part of type {name} is not supported; remove it"
            raise RowError(origin, "unsupported key", detail)
    if name == "text":
        return split(text(item.get("text"), origin, "the text of a content part"))
    value = item.get(name)
    entry = value["url"] if isinstance(value, dict) and "url" in value else value
    return (Place(_MEDIA_PARTS[name], {"video": entry, **rates} if rates else entry),)
