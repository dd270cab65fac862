"""Rows of one question and its answer: ms-swift's query, response and history, and alpaca's instruction and input."""

from collections.abc import Mapping
from typing import Any

from harness.data.format import content
from harness.data.format.keys import pick
from harness.data.format.turn import Turn
from harness.data.format.value import is_empty, kind, structured, text
from harness.data.row_error import RowError


def turns(fields: Mapping[str, Any], origin: str) -> list[Turn]:
    """Reads the rounds of the history and the last one; what is null in them is left out.

    Args:
        fields: The row by known keys.
        origin: The row, for messages.

    Raises:
        RowError: A part of the wrong type, or one with several sources.
    """
    rounds = [*_history(fields.get("history"), origin), (_query(fields, origin), _response(fields, origin))]
    return [
        Turn(role, content.pieces(said, role, origin))
        for asked_and_answered in rounds
        for role, said in zip(("user", "assistant"), asked_and_answered, strict=True)
        if said is not None
    ]


def is_alpaca(fields: Mapping[str, Any]) -> bool:
    """Whether instruction and input are two halves of a question, not two names for it."""
    return "instruction" in fields and "input" in fields


def _query(fields: Mapping[str, Any], origin: str) -> Any:
    if not is_alpaca(fields):
        return pick(fields, "query", origin)
    if not is_empty(fields.get("query")):
        detail = "instruction and input make up the query, and the row has a query too; map one to _ in data.columns"
        raise RowError(origin, "conflicting keys", detail)
    halves = [text(fields[key], origin, key) for key in ("instruction", "input")]
    return "\n".join(half for half in halves if half)


def _response(fields: Mapping[str, Any], origin: str) -> Any:
    # Alpaca's own name goes first: its public file has a `text` that repeats the whole row.
    response = fields["output"] if is_alpaca(fields) and "output" in fields else pick(fields, "response", origin)
    # Of several right answers the first is learnt, as in ms-swift.
    return response[0] if isinstance(response, (list, tuple)) and response and _is_text(response[0]) else response


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _history(value: Any, origin: str) -> list[tuple[Any, Any]]:
    rounds = structured(value, origin, "history") if value else []
    if not isinstance(rounds, (list, tuple)):
        raise RowError(origin, "wrong type", f"history must be a list of [query, response], got {kind(rounds)}")
    for one in rounds:
        if not isinstance(one, (list, tuple)) or len(one) != 2:
            detail = f"each round of history must be [query, response], got {kind(one)}"
            raise RowError(origin, "wrong type", detail)
    return [(one[0], one[1]) for one in rounds]
