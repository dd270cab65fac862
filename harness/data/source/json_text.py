"""JSON from strangers: what is broken or made to break the reader becomes a RowError."""

import json
import re
from typing import Any

import numpy as np

from harness.data.row_error import RowError

MAX_ROW_BYTES = 64 * 1024**2
"""Longest row; images and videos of more belong into files of their own."""
MAX_DEPTH = 100
"""Lists and objects inside each other; Python's own readers of JSON and templates recurse."""
MAX_DIGITS = 300
"""Of an integer: longer ones are over the range of floats, and slow to read."""

# Possessive, so that neither a long string nor one without an end makes the expression go back.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DEPTH_STEPS = np.zeros(256, dtype=np.int8)
_DEPTH_STEPS[list(b"[{")] = 1
_DEPTH_STEPS[list(b"]}")] = -1


class _Refused(ValueError):
    """What a hook of the decoder finds."""


def parse_json(content: bytes, origin: str) -> Any:
    """Parses one JSON value.

    Args:
        content: UTF-8, with or without a byte order mark.
        origin: The row, for messages.

    Raises:
        RowError: Not JSON, not UTF-8, too large, nested too deeply, or with what JSON does not have.
    """
    check_size(content, origin)
    text = decode(content, origin)
    if deeper_than(content, MAX_DEPTH):
        detail = f"more than {MAX_DEPTH} lists and objects inside each other; flatten the row"
        raise RowError(origin, "hostile JSON", detail)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"not JSON at column {error.colno} ({error.msg}); each line is one object"
        raise RowError(origin, "not JSON", detail) from error
    except _Refused as error:
        raise RowError(origin, "hostile JSON", str(error)) from None
    if _SURROGATE.search(content):
        _check_characters(value, origin)
    return value


def decode(content: bytes, origin: str) -> str:
    """Decodes UTF-8, with or without a byte order mark.

    Raises:
        RowError: It is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        raise RowError(origin, "not UTF-8", detail) from error


def check_size(content: bytes, origin: str) -> None:
    """Refuses a row of more than `MAX_ROW_BYTES`."""
    if len(content) > MAX_ROW_BYTES:
        detail = f"the row is over {MAX_ROW_BYTES >> 20} MiB; keep images and videos in files of their own"
        raise RowError(origin, "too large", detail)


def deeper_than(content: bytes, limit: int) -> bool:
    """Whether more than `limit` lists and objects stand inside each other, without recursion."""
    if content.count(b"[") + content.count(b"{") <= limit:
        return False
    bare = np.frombuffer(_STRING.sub(b"", content), dtype=np.uint8)
    return bool(np.cumsum(_DEPTH_STEPS[bare], dtype=np.int32).max(initial=0) > limit)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {twice[:80]!r} stands twice in one object; keep one")
    return made


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused(f"an integer of {len(digits):,} digits; write it as a string")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {digits[:40]} is over the range of floats; write it as a string")
    return value


def _constant(name: str) -> Any:
    raise _Refused(f"{name} is no JSON; write null")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _check_characters(value: Any, origin: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        detail = f"contains {error.object[error.start]!r}, half a surrogate pair, which is no character; remove it"
        raise RowError(origin, "hostile JSON", detail) from None
