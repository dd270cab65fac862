"""Text that would be read as the chat format's own markers is refused."""

import re
from typing import Any

from harness.data.row import Row
from harness.data.row_error import RowError
from harness.data.template.segment import PLACEHOLDER


class ControlTokens:
    """Special tokens that give a conversation its structure; grounding marks such as `<|box_start|>` are content."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes the special tokens that the chat template writes, and those that end or pad a text."""
        template = str(tokenizer.chat_template) + "".join(PLACEHOLDER.values())
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        ends = (tokenizer.eos_token, tokenizer.pad_token)
        tokens = sorted((token for token in special if token in template or token in ends), key=len, reverse=True)
        self.ids = frozenset(tokenizer.convert_tokens_to_ids(tokens))
        """Of the control tokens."""
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        # Nearly no text holds even what all of them begin with, and looking for that is the quicker.
        self._prefix = _common_prefix(tokens)

    def find(self, text: str) -> str | None:
        """Returns the first control token in a text."""
        if self._prefix not in text:
            return None
        match = self._pattern.search(text)
        return match[0] if match else None

    def check(self, row: Row) -> None:
        """Refuses a row that has one in a message.

        Raises:
            RowError: It has.
        """
        for number, message in enumerate(row.messages, start=1):
            parts = message.parts
            text = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else message.text
            if self._prefix in text:
                self.refuse(row, f"message {number} contains", text)

    def refuse(self, row: Row, what: str, text: str) -> None:
        """Raises RowError where a text, which the first words of the message name, has a control token."""
        if found := self.find(text):
            detail = f"{what} the control token {found!r}, which would be read as a marker"
            raise RowError(row.origin, "control token", f"{detail}; remove it or space it out")


def _common_prefix(texts: list[str]) -> str:
    low, high = min(texts, default=""), max(texts, default="")
    differ = (place for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other)
    return low[: next(differ, len(low))]
