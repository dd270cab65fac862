"""A row as the chat template takes it, with what its answers are made of."""

from dataclasses import dataclass, field
from typing import Any

from harness.data.row import Media, Message, Row

WRITTEN = ("assistant", "tool_call")
"""Roles of messages that the model writes."""


@dataclass(slots=True)
class Part:
    """What one message gives to an answer."""

    text: str
    """As it is given to the chat template; empty for a call that the template itself writes."""
    weight: float | None
    """The message's own loss weight."""
    written: bool = True
    """Whether the model writes it; a tool's result inside an answer is read."""
    call: dict[str, Any] | None = None
    """A call that the template itself writes."""


@dataclass(slots=True)
class Answer:
    """One assistant turn of the rendered text."""

    parts: list[Part]
    turn: int
    """Its place among the turns."""


@dataclass(slots=True)
class Conversation:
    """Turns for `apply_chat_template`."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    """What the template is given as `tools`."""
    num_earlier: int = 0
    """Answers in front of the last user turn."""

    def add(self, role: str, content: Any) -> None:
        """Adds a turn that is no answer."""
        self.turns.append({"role": role, "content": content})
        if role == "user":
            self.num_earlier = len(self.answers)

    def add_answer(self, content: Any, *parts: Part) -> dict[str, Any]:
        """Adds an answer and returns its turn."""
        turn = {"role": "assistant", "content": content}
        self.answers.append(Answer(list(parts), len(self.turns)))
        self.turns.append(turn)
        return turn


def plain_turns(row: Row, system: str | None) -> Conversation:
    """Takes a row without tools as it stands.

    Args:
        row: Its messages have the roles system, user and assistant.
        system: System message for a row that has none.
    """
    conversation = start(row, system)
    for message in row.messages:
        shown = content(message)
        if message.role == "assistant":
            text = shown if isinstance(shown, str) else message.text
            conversation.add_answer(shown, Part(text, message.weight))
        else:
            conversation.add(message.role, shown)
    return conversation


def start(row: Row, system: str | None) -> Conversation:
    """Begins a conversation, with the default system message where the row has none of its own."""
    conversation = Conversation()
    if system is not None and not has_system(row):
        conversation.add("system", system)
    return conversation


def has_system(row: Row) -> bool:
    """Says whether a row has a system message of its own."""
    return bool(row.messages) and row.messages[0].role == "system"


def content(message: Message) -> str | list[dict[str, str]]:
    """Returns a content that templates of text-only models take too, where there is no image or video."""
    parts = message.parts
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    if not any(isinstance(part, Media) for part in parts):
        return message.text
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": part.value} for part in parts]
