"""The keys of a row: renaming by `data.columns`, other names of a key, and keys that are refused."""

from collections.abc import Mapping
from typing import Any

from harness.data.format.value import excerpt, is_empty, kind
from harness.data.row_error import RowError
from harness.errors import reject

IGNORED = "_"
"""A column that `data.columns` maps to it is left out."""
ALIASES: Mapping[str, tuple[str, ...]] = {
    "messages": ("conversations", "conversation"),
    "system": ("system_prompt",),
    "query": ("prompt", "input", "instruction", "question", "problem"),
    "response": (
        *("answer", "output", "targets", "target", "answer_key", "answers"),
        *("solution", "text", "completion", "content"),
    ),
    "images": ("image",),
    "videos": ("video",),
    "tools": ("functions",),
}
"""Other names under which a key is found, as ms-swift has them, whatever their case."""
_PLAIN = (
    *("history", "objects", "label", "channel", "min_pixels", "max_pixels"),
    *("rejected_response", "rejected_messages", "rejected_images", "rejected_videos"),
    *("rejected_tools", "rejected_objects"),
)
_UNSUPPORTED = (
    *("audios", "audio", "rejected_audios", "loss_scale", "margin", "chat_template_kwargs"),
    *("positive_messages", "negative_messages"),
)
"""They would change what a row means; every other unknown key is the user's own and ignored."""
TARGETS = frozenset((*ALIASES, *(name for names in ALIASES.values() for name in names), *_PLAIN))
"""Keys to which `data.columns` may map."""
KNOWN = TARGETS.union(_UNSUPPORTED)
"""All keys that are read, to be used or to be refused."""
_TEXTS = frozenset(key for name in ("system", "query", "response") for key in (name, *ALIASES[name]))
"""Keys that may hold an empty text; elsewhere it is the empty cell of a table."""


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuses a mapping to keys that rows do not have.

    Raises:
        UserError: With the target that nothing reads.
    """
    for column, key in columns.items():
        if key != IGNORED and key not in TARGETS:
            remedy = f"is no key of a row; known: {', '.join(sorted(TARGETS))}, and {IGNORED} to leave a column out"
            raise reject(f"data.columns.{column}", key, remedy)


def read(raw: Any, columns: Mapping[str, str], origin: str) -> dict[str, Any]:
    """Returns what a row says under the keys that have a meaning; null and empty cells count as absent.

    Args:
        raw: The parsed row.
        columns: Their column to our key.
        origin: The row, for messages.

    Raises:
        RowError: Not an object, a column that the row lacks, two sources of a key, or a key that is not supported.
    """
    if not isinstance(raw, dict):
        raise RowError(origin, "wrong type", f"a row must be an object, got {kind(raw)}; JSONL has one object a line")
    for column in columns:
        if column not in raw:
            remedy = "data.columns names it; rows of another form belong into a data set of their own"
            raise RowError(origin, "missing column", f"the row has no column {excerpt(column)}; {remedy}")
    fields: dict[str, Any] = {}
    for name, value in raw.items():
        key = name.lower() if isinstance(name, str) else None
        # The exact name goes before another case of it.
        if key in KNOWN and name not in columns and (name == key or key not in raw):
            _add(fields, str(key), value, origin)
    for column, key in columns.items():
        if key != IGNORED:
            _add(fields, key, raw[column], origin)
    for key in _UNSUPPORTED:
        if not is_empty(fields.get(key)):
            remedy = f"remove it, or leave it out with data.columns: {{{key}: {IGNORED}}}"
            raise RowError(origin, "unsupported key", f"{key!r} is not supported; {remedy}")
    return fields


def pick(fields: Mapping[str, Any], key: str, origin: str) -> Any:
    """Returns the value of a key under its own name, or where that is empty under the one other that is not.

    Raises:
        RowError: Several other names hold something.
    """
    if not is_empty(fields.get(key)):
        return fields[key]
    found = [name for name in (key, *ALIASES[key]) if name in fields]
    telling = [name for name in found if not is_empty(fields[name])]
    if len(telling) > 1:
        remedy = f"choose one with data.columns: {{{telling[0]}: {key}}}"
        detail = f"{' and '.join(telling)} are names of the {key}, and the row has them all; {remedy}"
        raise RowError(origin, "conflicting keys", detail)
    return fields[(telling or found)[0]] if found else None


def _add(fields: dict[str, Any], key: str, value: Any, origin: str) -> None:
    if value is None or (key not in _TEXTS and isinstance(value, str) and not value):
        return
    if key in fields:
        remedy = f"map one of them to {IGNORED} in data.columns"
        raise RowError(origin, "conflicting keys", f"the row has two sources of {key!r}; {remedy}")
    fields[key] = value
