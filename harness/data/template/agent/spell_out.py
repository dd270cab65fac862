"""Tools, calls and results as plain text in system and assistant turns, for formats that the chat template lacks."""

from collections.abc import Sequence
from itertools import groupby

from harness.data.row import Media, Message, Row
from harness.data.row_error import RowError
from harness.data.template.agent.agent_format import AgentFormat
from harness.data.template.agent.call import parse_call, schemas
from harness.data.template.conversation import Conversation, Part, content, has_system

Numbered = tuple[int, Message]
"""A message and its place in the row, from 1."""


def turns(row: Row, system: str | None, agent_format: AgentFormat) -> Conversation:
    """Joins each round of messages, calls and results to one assistant turn.

    Raises:
        RowError: A tool or a call can not be read, a result follows no call, or one shows an image.
    """
    numbered = list(enumerate(row.messages, start=1))
    conversation = Conversation()
    system = row.messages[0].text if has_system(row) else system
    if row.tools:
        system = agent_format.system(schemas(row), system or "")
    if system is not None:
        conversation.add("system", system)
    before = ""
    for role, group in groupby(numbered[int(has_system(row)) :], lambda item: item[1].role):
        messages = list(group)
        if role in ("assistant", "tool_call", "tool_response"):
            _check_media(row, messages)
        if role == "assistant":
            _add_answers(conversation, messages, goes_on=before == "tool_response")
        elif role == "tool_call":
            _add_calls(row, conversation, messages, agent_format, goes_on=before in ("assistant", "tool_response"))
        elif role == "tool_response":
            _add_results(row, conversation, messages, agent_format, goes_on=before in ("assistant", "tool_call"))
        else:
            for _, message in messages:
                conversation.add(role, content(message))
        before = role
    for answer in conversation.answers:
        conversation.turns[answer.turn]["content"] = "".join(part.text for part in answer.parts)
    return conversation


def _add_answers(conversation: Conversation, messages: Sequence[Numbered], *, goes_on: bool) -> None:
    for _, message in messages:
        _add(conversation, Part(message.text, message.weight), goes_on)
        goes_on = False


def _add_calls(
    row: Row, conversation: Conversation, messages: Sequence[Numbered], agent_format: AgentFormat, *, goes_on: bool
) -> None:
    texts = agent_format.calls([parse_call(row, message, number) for number, message in messages])
    said = _said(conversation) if goes_on else ""
    if said and not said.endswith("\n"):
        texts[0] = "\n" + texts[0]
    for (_, message), text in zip(messages, texts, strict=True):
        _add(conversation, Part(text, message.weight), goes_on)
        goes_on = True


def _add_results(
    row: Row, conversation: Conversation, messages: Sequence[Numbered], agent_format: AgentFormat, *, goes_on: bool
) -> None:
    texts = [message.text for _, message in messages]
    found = agent_format.results(_said(conversation), texts) if goes_on else None
    if found is None:
        detail = f"message {messages[0][0]} is a tool_response, and the turn in front of it calls no tool"
        raise RowError(row.origin, "tool response", f"{detail}; put a tool_call there")
    stop, text = found
    conversation.answers[-1].parts[-1].text += stop
    _add(conversation, Part(text, None, written=False), True)


def _add(conversation: Conversation, part: Part, goes_on: bool) -> None:
    if goes_on:
        conversation.answers[-1].parts.append(part)
    else:
        conversation.add_answer("", part)


def _said(conversation: Conversation) -> str:
    """Returns what the model has written since the last result."""
    text = ""
    for part in reversed(conversation.answers[-1].parts):
        if not part.written:
            break
        text = part.text + text
    return text


def _check_media(row: Row, messages: Sequence[Numbered]) -> None:
    for number, message in messages:
        if any(isinstance(part, Media) for part in message.parts):
            detail = f"message {number} ({message.role}) shows an image or video inside an assistant turn"
            remedy = "Qwen's template shows those in user turns only; data.agent_template=hermes makes results such"
            raise RowError(row.origin, "media place", f"{detail}; {remedy}")
