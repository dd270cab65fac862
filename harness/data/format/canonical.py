"""Any row to the canonical one, by the keys that it has.

`messages` (or `conversation`, `conversations`) go first, then alpaca's `instruction` with `input`, then `query` and
`response` under their many names; a `text` alone is pre-training text. Keys of a family that goes behind are the user's
own and ignored, as is every key without a meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.data.config import BboxScale
from harness.data.format import content, grounding, keys, messages, preference, query, tool
from harness.data.format.conversation import Conversation, Side, resolve
from harness.data.format.turn import Turn
from harness.data.format.value import excerpt, flag, is_empty, is_number, listed, text
from harness.data.media.reference import MediaPolicy
from harness.data.row import Rejected, Row
from harness.data.row_error import RowError

_FAMILIES = ("messages", "query", "response", "system")
_SPOKEN = frozenset(("history", *_FAMILIES, *(name for key in _FAMILIES for name in keys.ALIASES[key]))) - {"text"}
"""Keys beside which `text` is an answer."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How the rows of a data set are read."""

    media: MediaPolicy
    columns: Mapping[str, str]
    """Their column to our key; `_` leaves a column out."""
    bbox: BboxScale

    def __post_init__(self) -> None:
        keys.check_columns(self.columns)


def canonical(raw: Any, origin: str, how: RowFormat) -> Row:
    """Checks a parsed row of any format and brings it into canonical form.

    Files of media are looked up; only images with boxes in pixels are opened, for the size in their header.

    Args:
        raw: The row as its file has it.
        origin: `file.jsonl:12`, with which every message begins.
        how: How to read it.

    Raises:
        RowError: The row can not be used. Nothing else is raised, whatever stands in the row.
    """
    fields = keys.read(raw, how.columns, origin)
    plain = _is_plain(fields)
    tools = tool.schemas(keys.pick(fields, "tools", origin), origin)
    chosen = Side(
        turns=_plain(fields, tools, origin) if plain else _turns(raw, fields, origin),
        images=tuple(listed(keys.pick(fields, "images", origin))),
        videos=tuple(listed(keys.pick(fields, "videos", origin))),
        objects=grounding.read(fields.get("objects"), origin),
    )
    conversation = resolve(chosen, how.media, how.bbox, origin, plain=plain)
    label = fields.get("label")
    low, high = _bounds(fields, how.media.max_pixels, origin)
    return Row(
        messages=conversation.messages,
        images=conversation.images,
        videos=conversation.videos,
        origin=origin,
        plain=plain,
        tools=tools,
        channel=text(fields["channel"], origin, "channel") if "channel" in fields else None,
        rejected=_rejected(fields, chosen, conversation, how, tools, origin),
        label=None if label is None else flag(label, origin, "label"),
        min_pixels=low,
        max_pixels=high,
    )


def _is_plain(fields: Mapping[str, Any]) -> bool:
    """Whether the row has a `text` and nothing else that would make a conversation of it."""
    return "text" in fields and all(is_empty(fields.get(name)) for name in _SPOKEN)


def _plain(fields: Mapping[str, Any], tools: tuple[Any, ...], origin: str) -> tuple[Turn, ...]:
    if tools or preference.is_preference(fields):
        detail = "pre-training text has no tools and no rejected answer; give query and response, or messages"
        raise RowError(origin, "conflicting keys", detail)
    said = text(fields["text"], origin, "text")
    if not said:
        raise RowError(origin, "no messages", "text is empty, so there is nothing to learn")
    return (Turn("assistant", content.split(said)),)


def _turns(raw: Mapping[str, Any], fields: Mapping[str, Any], origin: str) -> tuple[Turn, ...]:
    """Reads the conversation of whichever family the row is of, with its system message."""
    listed_messages = keys.pick(fields, "messages", origin)
    turns = query.turns(fields, origin) if listed_messages is None else messages.turns(listed_messages, origin)
    if not turns:
        names = ", ".join(excerpt(name) for name in list(raw)[:20]) or "none"
        remedy = "give messages, query and response, or text, or say by data.columns which columns they are"
        raise RowError(origin, "unknown format", f"the row has no messages; its keys are {names}; {remedy}")
    said = keys.pick(fields, "system", origin)
    if said is None:
        return tuple(turns)
    system = Turn("system", content.split(text(said, origin, "system")))
    if turns[0].role != "system":
        return (system, *turns)
    if turns[0].pieces != system.pieces:
        detail = "the row has a system key and a system message that differ; map the key to _ in data.columns"
        raise RowError(origin, "conflicting keys", detail)
    return tuple(turns)


def _rejected(
    fields: Mapping[str, Any],
    chosen: Side,
    better: Conversation,
    how: RowFormat,
    tools: tuple[Any, ...],
    origin: str,
) -> Rejected | None:
    if not preference.is_preference(fields):
        return None
    side = preference.rejected(fields, chosen, tools, origin)
    worse = resolve(side, how.media, how.bbox, origin)
    preference.check_differs(better, worse, origin)
    return Rejected(worse.messages, worse.images, worse.videos)


def _bounds(fields: Mapping[str, Any], limit: int, origin: str) -> tuple[int | None, int | None]:
    """Returns the row's own bounds on the pixels of its images."""
    low, high = fields.get("min_pixels"), fields.get("max_pixels")
    for key, value in (("min_pixels", low), ("max_pixels", high)):
        if value is not None and not (is_number(value) and isinstance(value, int) and value >= 1):
            raise RowError(origin, "wrong type", f"{key} must be an integer of at least 1, got {excerpt(value)}")
    if low is not None and low > min(high or limit, limit):
        # An image is enlarged to the lower bound, so that one must not be without end.
        bound = "max_pixels" if high and high < limit else "data.image.max_pixels_decoded"
        raise RowError(origin, "wrong type", f"min_pixels {low} is over {bound} {min(high or limit, limit)}")
    return low, high
