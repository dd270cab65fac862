"""Conversations through the checkpoint's chat template, and what became of their answers.

Where an answer and its parts begin and end is found on the rendered text: a template may rewrite answers, as that of
the Thinking checkpoints leaves out the reasoning of earlier turns.
"""

from collections.abc import Sequence
from typing import Any

import jinja2

from harness.data.row import Row
from harness.data.row_error import RowError
from harness.data.template.conversation import Answer, Conversation, Part
from harness.data.template.segment import END, PLACEHOLDER, SYSTEM_HEADER, cut_answers, divide

TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, RecursionError)
"""What a chat template raises for a row that it does not like."""


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Keeps the tokenizer."""
        self.tokenizer = tokenizer

    def apply_together(self, together: list[list[dict[str, Any]]]) -> Sequence[str | None]:
        """Renders the turns of conversations in one call; None for all where the template refuses one of them."""
        if not together:
            return []
        try:
            return self.tokenizer.apply_chat_template(together, tokenize=False)
        except TEMPLATE_ERRORS:
            return [None] * len(together)

    def apply(self, row: Row, conversation: Conversation, *, prompt: bool = False) -> str:
        """Renders a conversation, and the generation prompt where that is wanted.

        Raises:
            RowError: The template refuses it.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                conversation.turns, tools=conversation.tools, tokenize=False, add_generation_prompt=prompt
            )
        except TEMPLATE_ERRORS as error:
            raise RowError(row.origin, "chat template", f"the chat template refuses the row ({error})") from error
        return str(text)

    def cut(self, row: Row, conversation: Conversation, text: str) -> tuple[list[str], list[str]]:
        """Cuts rendered text at its answers.

        Returns:
            What stands around the answers, and the answers without their end tokens.

        Raises:
            RowError: The text does not show the whole row.
        """
        check_shown(row, conversation, text)
        cut = cut_answers(text)
        if cut is None:
            detail = f"the chat template does not end an assistant turn with {END}"
            raise RowError(row.origin, "chat template", detail)
        if len(cut[1]) != len(conversation.answers):
            detail = f"the chat template renders {len(cut[1])} of {len(conversation.answers)} assistant turns"
            raise RowError(row.origin, "chat template", detail)
        return cut

    def parts(self, row: Row, answer: Answer, rendered: str) -> list[tuple[Part, str]]:
        """Pairs the parts of an answer with their rendered texts; where all are weighed alike, they stay together.

        Raises:
            RowError: The template rewrote more of the answer than its beginning.
        """
        first, *others = answer.parts
        if all((part.weight, part.written) == (first.weight, first.written) for part in others):
            return [(first, rendered)]
        texts = [self._call(row, part.call) if part.call else part.text for part in answer.parts]
        found = divide(rendered, texts)
        if found is None:
            detail = "the chat template leaves out or rewrites part of an assistant turn with tools"
            raise RowError(row.origin, "chat template", f"{detail}, so its parts can not have weights of their own")
        return list(zip(answer.parts, found, strict=True))

    def _call(self, row: Row, call: dict[str, Any]) -> str:
        """Returns how the template writes a call: what a second one adds to an answer, less the gap before it."""
        answers = []
        for calls in ([call], [call, call]):
            probe = Conversation([{"role": "user", "content": "?"}])
            probe.add_answer("")["tool_calls"] = calls
            cut = cut_answers(self.apply(row, probe))
            answers.append(cut[1][0] if cut and cut[1] else "")
        return answers[1].removeprefix(answers[0]).lstrip()


def check_shown(row: Row, conversation: Conversation, text: str) -> None:
    """Refuses a row of which the template leaves out images, videos or a system message, or that is no proper text.

    Raises:
        RowError: It does.
    """
    check_text(row, text)
    turns = conversation.turns
    if row.images or row.videos:
        kinds = [part["type"] for turn in turns if isinstance(turn["content"], list) for part in turn["content"]]
        for kind, placeholder in PLACEHOLDER.items():
            shown, given = text.count(placeholder), kinds.count(kind.value)
            if shown != given:
                detail = f"the chat template shows {shown} of {given} {kind.value}s"
                remedy = "Qwen's template shows those in user turns only, so move them there"
                raise RowError(row.origin, "media place", f"{detail}; {remedy}")
    for turn in turns[1:]:
        if turn["role"] == "system" and f"{SYSTEM_HEADER}{turn['content']}" not in text:
            detail = "the chat template shows a system message at the beginning only"
            raise RowError(row.origin, "system place", f"{detail}, so move it there")


def check_text(row: Row, text: str) -> None:
    """Refuses text that no tokenizer takes.

    Raises:
        RowError: It holds half a surrogate pair, as JSON can spell one.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"the text holds {text[error.start]!r}, half of a surrogate pair, which is no character; remove it"
        raise RowError(row.origin, "broken text", detail) from error
