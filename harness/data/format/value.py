"""Typed reads of what stands in a user's row: whatever is wrong with a value becomes a RowError."""

import ast
import json
import math
import warnings
from typing import Any

from harness.data.row_error import RowError

MAX_NESTING = 64
"""Lists and objects inside each other; templates and JSON writers recurse, and hostile rows would exhaust the stack."""
_MAX_SHOWN = 80
_MAX_LITERAL = 1_000_000
"""Characters of a Python literal: its syntax tree takes hundreds of times their memory."""
_LARGEST = 1e9
"""No pixel, coordinate or weight is larger; larger integers overflow where they meet floats."""


def kind(value: Any) -> str:
    """Returns the name of a value's type, as JSON users know it where that differs."""
    return "null" if value is None else type(value).__name__


def excerpt(value: Any) -> str:
    """Returns the start of a value for a message; of containers the type, as writing out a deep one would fail."""
    if isinstance(value, str):
        return repr(value[:_MAX_SHOWN])
    # Python refuses to write out integers of thousands of digits.
    return repr(value) if is_number(value) or isinstance(value, bool) else kind(value)


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, or an empty string, list or object."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of usual size; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -_LARGEST <= value <= _LARGEST and math.isfinite(value)


def text(value: Any, origin: str, what: str) -> str:
    """Returns a string that a tokenizer can take.

    Raises:
        RowError: Not a string, or one with half a surrogate pair, which has no UTF-8 form.
    """
    if not isinstance(value, str):
        raise RowError(origin, "wrong type", f"{what} must be a string, got {kind(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            detail = f"{what} contains {value[error.start]!r}, half a surrogate pair, which is no character; remove it"
            raise RowError(origin, "broken text", detail) from None
    return value


def flag(value: Any, origin: str, what: str) -> bool:
    """Returns true, false, 0 or 1 as a bool."""
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        remedy = "a value of another meaning goes by data.columns to the key _"
        raise RowError(origin, "wrong type", f"{what} must be true or false, got {excerpt(value)}; {remedy}")
    return bool(value)


def listed(value: Any) -> list[Any]:
    """Returns the entries of a key that takes one or several; a table's cell may hold them as a JSON list."""
    if is_empty(value):
        return []
    if isinstance(value, str) and value.startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return [value]  # a path may begin with a bracket
        return parsed if isinstance(parsed, list) else [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def structured(value: Any, origin: str, what: str) -> Any:
    """Parses a string that holds JSON or a Python literal, as cells of tables do; returns anything else as it is.

    Raises:
        RowError: A string that is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the user's string
            return ast.literal_eval(value.strip() if len(value) <= _MAX_LITERAL else "")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RowError(origin, "not JSON", f"{what} is a string that is not JSON: {excerpt(value)}") from None


def to_json(value: Any, origin: str, what: str) -> str:
    """Writes a value as JSON, characters as they are.

    Raises:
        RowError: Nested too deeply, or with something that JSON does not have.
    """
    check_nesting(value, origin, what)
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(origin, "wrong type", f"{what} can not be written as JSON ({error})") from None
    return text(written, origin, what)


def check_nesting(value: Any, origin: str, what: str) -> None:
    """Refuses lists and objects that stand in more than `MAX_NESTING` others."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, tuple, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    detail = f"{what} has more than {MAX_NESTING} lists and objects inside each other; flatten it"
    raise RowError(origin, "nested too deeply", detail)
