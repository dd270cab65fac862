"""Conversations as lists of messages: ms-swift's and OpenAI's role and content, ShareGPT's from and value or pairs."""

from collections.abc import Mapping
from typing import Any

from harness.data.format import content, tool
from harness.data.format.turn import WRITTEN, Turn
from harness.data.format.value import excerpt, flag, is_empty, is_number, kind, structured
from harness.data.row import ROLES
from harness.data.row_error import RowError

ROLE_OF = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot"), "assistant"),
    "function_call": "tool_call",
    **dict.fromkeys(("tool", "function", "function_response", "observation", "observations"), "tool_response"),
}
"""Names of who speaks, in all formats, to ours."""
_KEYS = ("role", "from", "content", "value", "loss", "loss_scale")
_KEYS_OF = {
    "assistant": ("tool_calls", "function_call", "weight"),
    "tool_response": ("tool_call_id", "name"),
}
_ASKING = ("user", "human")
_ANSWERING = ("assistant", "gpt", "bot")


def turns(value: Any, origin: str, what: str = "messages") -> list[Turn]:
    """Reads a conversation.

    Args:
        value: A list of messages, or a JSON string of one.
        origin: The row, for messages.
        what: The key, for messages.

    Raises:
        RowError: With the first thing that can not be used.
    """
    messages = structured(value, origin, what)
    if not isinstance(messages, (list, tuple)):
        raise RowError(origin, "wrong type", f"{what} must be a list, got {kind(messages)}")
    if not messages:
        raise RowError(origin, "no messages", f"{what} is an empty list, so there is nothing to learn")
    return [turn for message in tool.in_call_order(messages) for turn in _turns(message, origin)]


def _turns(message: Any, origin: str) -> list[Turn]:
    if not isinstance(message, dict):
        detail = f"a message must be an object with role and content, got {kind(message)}"
        raise RowError(origin, "wrong type", detail)
    if not any(key in message for key in ("role", "from", "content", "value")):
        return _pair(message, origin)
    role = _role(_either(message, "role", "from", origin), origin)
    known = (*_KEYS, *_KEYS_OF.get(role, ()))
    _refuse_unknown(message, known, origin)
    weight = _weight(message, role, origin)
    calls = tool.calls(message, origin) if role == "assistant" else []
    said = _either(message, "content", "value", origin)
    found = [] if calls and is_empty(said) else [Turn(role, content.pieces(said, role, origin), weight)]
    return found + [Turn("tool_call", content.split(call), weight) for call in calls]


def _pair(message: dict[str, Any], origin: str) -> list[Turn]:
    """Reads `{"human": ..., "assistant": ...}`, a question with its answer."""
    asking = [key for key in _ASKING if key in message]
    answering = [key for key in _ANSWERING if key in message]
    if len(asking) != 1 or len(answering) != 1:
        names = ", ".join(excerpt(key) for key in list(message)[:8]) or "none"
        remedy = "give role and content, from and value, or human and assistant"
        raise RowError(origin, "unknown role", f"a message does not say who speaks; its keys are {names}; {remedy}")
    _refuse_unknown(message, (*asking, *answering), origin)
    return [
        Turn("user", content.pieces(message[asking[0]], "user", origin)),
        Turn("assistant", content.pieces(message[answering[0]], "assistant", origin)),
    ]


def _either(message: Mapping[str, Any], first: str, second: str, origin: str) -> Any:
    if message.get(first) is not None and message.get(second) is not None:
        raise RowError(origin, "conflicting keys", f"a message has both {first!r} and {second!r}; remove one")
    return message.get(second) if message.get(first) is None else message[first]


def _role(name: Any, origin: str) -> str:
    role = ROLE_OF.get(name.replace("-", "_")) if isinstance(name, str) else None
    if role is None:
        raise RowError(origin, "unknown role", f"unknown role {excerpt(name)}; known: {', '.join(ROLE_OF)}")
    return role


def _refuse_unknown(message: Mapping[str, Any], known: tuple[str, ...], origin: str) -> None:
    for key, value in message.items():
        if key not in known and not is_empty(value):
            detail = f"message key {excerpt(key)} is not supported here; remove it from the row"
            raise RowError(origin, "unsupported key", detail)


def _weight(message: Mapping[str, Any], role: str, origin: str) -> float | None:
    """Returns what `loss` (or OpenAI's `weight`) and `loss_scale` say: whether a turn is learnt, and how much."""
    learnt = _either(message, "loss", "weight", origin) if role == "assistant" else message.get("loss")
    learnt = None if learnt is None else flag(learnt, origin, "loss of a message")
    scale = message.get("loss_scale")
    if scale is not None and (not is_number(scale) or scale < 0):
        detail = f"loss_scale of a message must be a number of at least 0, got {excerpt(scale)}"
        raise RowError(origin, "wrong type", detail)
    if learnt is False and scale:
        detail = f"a message has loss false and loss_scale {scale}; remove one"
        raise RowError(origin, "conflicting keys", detail)
    weight = float(learnt) if scale is None and learnt is not None else scale
    if weight and role not in WRITTEN:
        detail = f"loss on a turn of role {role}; only what the model writes is learnt, so remove it"
        raise RowError(origin, "loss on a prompt", detail)
    return None if weight is None else float(weight)
