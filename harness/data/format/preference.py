"""Preference rows: the worse conversation, from `rejected_response`, `rejected_messages` or `rejected_images`."""

from collections.abc import Mapping
from typing import Any

from harness.data.format import content, grounding, messages, tool
from harness.data.format.conversation import Conversation, Side
from harness.data.format.turn import Turn
from harness.data.format.value import is_empty, listed
from harness.data.row_error import RowError

_KEYS = ("rejected_response", "rejected_messages", "rejected_images", "rejected_videos", "rejected_objects")


def is_preference(fields: Mapping[str, Any]) -> bool:
    """Whether a row says what is worse."""
    return any(not is_empty(fields.get(key)) for key in _KEYS)


def rejected(fields: Mapping[str, Any], chosen: Side, tools: tuple[Any, ...], origin: str) -> Side:
    """Returns the worse conversation, whole.

    `rejected_response` stands behind the last user turn of the better one, in the place of its answer or of its calls
    and their results. Images, videos and objects are those of the better one where the row has none of its own, but
    for `rejected_messages`, which bring their own.

    Args:
        fields: The row by known keys.
        chosen: The better conversation.
        tools: Of the row.
        origin: The row, for messages.

    Raises:
        RowError: Both ways at once, a response with a user turn, or other tools.
    """
    if tool.schemas(fields.get("rejected_tools"), origin, "rejected_tools") not in ((), tools):
        detail = "rejected_tools are not the row's tools; both conversations must have the same"
        raise RowError(origin, "unsupported key", detail)
    own = not is_empty(fields.get("rejected_messages"))
    return Side(
        turns=_rejected_messages(fields, chosen, origin) if own else _rejected_response(fields, chosen, origin),
        images=_media(fields, "rejected_images", () if own else chosen.images),
        videos=_media(fields, "rejected_videos", () if own else chosen.videos),
        objects=_objects(fields, grounding.Objects() if own else chosen.objects, origin),
        prefix="rejected_",
    )


def _rejected_messages(fields: Mapping[str, Any], chosen: Side, origin: str) -> tuple[Turn, ...]:
    if not is_empty(fields.get("rejected_response")):
        detail = "the row has both rejected_messages and rejected_response; remove one"
        raise RowError(origin, "conflicting keys", detail)
    turns = messages.turns(fields["rejected_messages"], origin, "rejected_messages")
    # A system key stands for both conversations.
    both = "system" in fields or "system_prompt" in fields
    system = [chosen.turns[0]] if both and chosen.turns[0].role == "system" and turns[0].role != "system" else []
    return (*system, *turns)


def _rejected_response(fields: Mapping[str, Any], chosen: Side, origin: str) -> tuple[Turn, ...]:
    response = fields.get("rejected_response")
    if is_empty(response):
        return chosen.turns
    if isinstance(response, str):
        answer = [Turn("assistant", content.pieces(response, "assistant", origin))]
    else:
        answer = messages.turns(response, origin, "rejected_response")
    if any(turn.role in ("user", "system") for turn in answer):
        detail = "rejected_response has a user or system turn; give whole conversations as rejected_messages"
        raise RowError(origin, "wrong type", detail)
    asked = [index for index, turn in enumerate(chosen.turns) if turn.role in ("user", "system")]
    return (*chosen.turns[: asked[-1] + 1 if asked else 0], *answer)


def _media(fields: Mapping[str, Any], key: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(listed(fields[key])) if not is_empty(fields.get(key)) else default


def _objects(fields: Mapping[str, Any], default: grounding.Objects, origin: str) -> grounding.Objects:
    own = fields.get("rejected_objects")
    return default if is_empty(own) else grounding.read(own, origin, "rejected_objects")


def check_differs(better: Conversation, worse: Conversation, origin: str) -> None:
    """Refuses a row whose two conversations are the same.

    Raises:
        RowError: Same messages, images and videos.
    """
    if _shown(better) == _shown(worse):
        raise RowError(origin, "rejected equals chosen", "the rejected answer equals the chosen one; give another")


def _shown(conversation: Conversation) -> tuple[Any, ...]:
    images = tuple(_identity(image.source) for image in conversation.images)
    videos = tuple((_identity(video.source), video.fps) for video in conversation.videos)
    return conversation.messages, images, videos


def _identity(source: Any) -> Any:
    if isinstance(source, tuple):
        return tuple(_identity(frame.source) for frame in source)
    # Pictures in memory are told apart by where they are: comparing them would decode both.
    return source if isinstance(source, (str, bytes)) else id(source)
