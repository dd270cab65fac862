"""Which tokens of an answer carry loss, and with what weight (`data.loss_scale`).

The weighted modes follow ms-swift: keywords cut an answer, and each gives a weight to itself and one to what follows
it, up to the next (Modelscope-Agent, https://arxiv.org/abs/2309.00986); or what a pattern matches has a weight of its
own. The rest of the answer, and its end token, has weight 1. Two of its rules are not here: weights that the question's
words give to a whole answer (agentflan), and empty reasoning blocks in the formats of other models.
"""

import re
from collections.abc import Sequence

from harness.data.config import LossScale
from harness.data.row import Row
from harness.data.row_error import RowError
from harness.data.template.conversation import WRITTEN, Part
from harness.data.template.segment import END, Piece

_REACT = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
KEYWORDS = {
    LossScale.react: _REACT,
    LossScale.alpha_umi: {**_REACT, "Next:": (2.0, 2.0)},
    LossScale.qwen: {
        "✿FUNCTION✿:": (2.0, 2.0),
        "✿ARGS✿:": (2.0, 2.0),
        "✿RETURN✿:": (1.0, 1.0),
        "✿RESULT✿:": (2.0, 0.0),
    },
    LossScale.agentflan: {
        "Name:": (1.0, 3.0),
        "Action:": (1.0, 3.0),
        "ACTION:": (1.0, 3.0),
        "Tool:": (1.0, 3.0),
        "Command": (1.0, 3.0),
        "Arguments:": (1.0, 3.0),
        "action input": (1.0, 3.0),
        "ACTION_INPUT:": (1.0, 3.0),
        "Action Input:": (1.0, 3.0),
        "Thought:": (1.0, 1.0),
        "Final Answer:": (1.0, 1.0),
        "Observation:": (2.0, 0.0),
    },
}
"""Weights of each keyword and of what follows it."""
PATTERNS = {
    LossScale.ignore_empty_think: (re.compile(r"\A<think>\s*</think>\s*"), 0.0),
    LossScale.hermes: (re.compile(r"<tool_call>.+?</tool_call>", re.DOTALL), 2.0),
}
"""Patterns and the weight of what they match."""

_KEYWORD = {mode: re.compile("|".join(map(re.escape, table))) for mode, table in KEYWORDS.items()}


def weigh(mode: LossScale, text: str) -> list[Piece]:
    """Weighs what the model writes in one go."""
    if mode in KEYWORDS:
        return _by_keyword(text, KEYWORDS[mode], _KEYWORD[mode])
    if mode in PATTERNS:
        return _by_pattern(text, *PATTERNS[mode])
    return [(text, 1.0)]


def weigh_answer(mode: LossScale, parts: Sequence[tuple[Part, str]], earlier: bool) -> list[Piece]:
    """Weighs a rendered answer and its end token, which goes with the last part.

    Args:
        mode: `data.loss_scale`.
        parts: What the answer is made of, each with its rendered text.
        earlier: The answer stands in front of the last user turn.
    """
    pieces: list[Piece] = []
    end = 1.0
    for part, text in parts:
        end = _flat(mode, part, earlier)
        pieces += weigh(mode, text) if part.weight is None and part.written and end else [(text, end)]
    return [*pieces, (END, end)]


def check_weights(mode: LossScale, row: Row) -> None:
    """Refuses a weight of a message that the model does not write, where it would be without effect.

    Raises:
        RowError: There is one.
    """
    for number, message in enumerate(row.messages, start=1):
        if message.weight is None or message.role in WRITTEN:
            continue
        if message.weight or mode is LossScale.all:
            what = f"message {number} has a loss weight and the role {message.role}"
            detail = f"{what}; only assistant and tool_call messages can have one, so remove it"
            raise RowError(row.origin, "loss weight", detail)


def _flat(mode: LossScale, part: Part, earlier: bool) -> float:
    """Returns the weight of a part before its text is looked at."""
    if part.weight is not None:
        return part.weight
    if mode is LossScale.all:
        return 1.0
    return float(part.written and not (earlier and mode is LossScale.last_round))


def _by_keyword(text: str, table: dict[str, tuple[float, float]], pattern: re.Pattern[str]) -> list[Piece]:
    pieces = []
    start, weight = 0, 1.0
    for match in pattern.finditer(text):
        own, after = table[match[0]]
        pieces += [(text[start : match.start()], weight), (match[0], own)]
        start, weight = match.end(), after
    return [*pieces, (text[start:], weight)]


def _by_pattern(text: str, pattern: re.Pattern[str], weight: float) -> list[Piece]:
    pieces = []
    start = 0
    for match in pattern.finditer(text):
        pieces += [(text[start : match.start()], 1.0), (match[0], weight)]
        start = match.end()
    return [*pieces, (text[start:], 1.0)]
