"""Tools: the schemas of a row, OpenAI's `tool_calls` as turns, and results in the order of their calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.format.value import check_nesting, excerpt, is_empty, kind, structured, text, to_json
from harness.data.row_error import RowError

_RESULTS = ("tool", "tool_response")


def schemas(value: Any, origin: str, what: str = "tools") -> tuple[Any, ...]:
    """Reads the tools of a row into OpenAI's form `{"type": "function", "function": {...}}`.

    Args:
        value: A list of tools or one tool, as objects or as JSON strings; a bare function is wrapped.
        origin: The row, for messages.
        what: The key, for messages.

    Raises:
        RowError: Not JSON, not an object, without a name, or nested too deeply.
    """
    parsed: Any = () if is_empty(value) else structured(value, origin, what)
    if is_empty(parsed):
        return ()
    tools = parsed if isinstance(parsed, (list, tuple)) else [parsed]
    return tuple(_schema(structured(tool, origin, f"an entry of {what}"), origin, what) for tool in tools)


def _schema(tool: Any, origin: str, what: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise RowError(origin, "wrong type", f"an entry of {what} must be an object, got {kind(tool)}")
    wrapped: dict[str, Any] = tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}
    name = wrapped["function"].get("name")
    if not isinstance(name, str) or not name:
        raise RowError(origin, "wrong type", f"an entry of {what} has no name; a tool is a JSON schema of a function")
    to_json(wrapped, origin, what)  # proves that templates can write it
    return wrapped


def calls(message: Mapping[str, Any], origin: str) -> list[str]:
    """Returns the calls of an assistant message as JSON texts `{"name": ..., "arguments": {...}}`.

    Args:
        message: With OpenAI's `tool_calls`, its older `function_call`, or none of them.
        origin: The row, for messages.

    Raises:
        RowError: A call without a name, or whose arguments are no JSON object.
    """
    listed = message.get("tool_calls")
    if listed is not None and not isinstance(listed, (list, tuple)):
        raise RowError(origin, "wrong type", f"tool_calls must be a list, got {kind(listed)}")
    single = message.get("function_call")
    return [_call(call, origin) for call in [*(listed or ()), *([] if is_empty(single) else [single])]]


def _call(call: Any, origin: str) -> str:
    function = call.get("function", call) if isinstance(call, dict) else call
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowError(origin, "wrong type", "a tool call must be an object with the name of a function and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        written = _check_arguments(arguments.strip() or "{}", origin)
    elif arguments is None or isinstance(arguments, dict):
        written = to_json(arguments or {}, origin, "the arguments of a tool call")
    else:
        raise RowError(origin, "wrong type", f"the arguments of a tool call must be an object, got {kind(arguments)}")
    return f'{{"name": {to_json(name, origin, "the name of a tool call")}, "arguments": {written}}}'


def _check_arguments(written: str, origin: str) -> str:
    """Returns the arguments as the user wrote them: parsing and writing again would change numbers."""
    what = "the arguments of a tool call"
    try:
        parsed = json.loads(text(written, origin, what))
    except (ValueError, RecursionError):
        raise RowError(origin, "not JSON", f"{what} are not JSON: {excerpt(written)}") from None
    if not isinstance(parsed, dict):
        raise RowError(origin, "wrong type", f"{what} must be an object, got {kind(parsed)}")
    check_nesting(parsed, origin, what)
    return written


def in_call_order(messages: Sequence[Any]) -> list[Any]:
    """Puts results that name their call (`tool_call_id`) in the order of the calls: turns have no ids.

    Results stay as they are where their ids do not match the calls one to one.
    """
    ordered = list(messages)
    for index, message in enumerate(ordered):
        ids = _ids(message.get("tool_calls") if isinstance(message, dict) else None, "id")
        results = ordered[index + 1 : index + 1 + len(ids)]
        if ids and all(isinstance(result, dict) and result.get("role") in _RESULTS for result in results):
            by_id = dict(zip(_ids(results, "tool_call_id"), results, strict=False))
            if set(by_id) == set(ids):
                ordered[index + 1 : index + 1 + len(ids)] = [by_id[name] for name in ids]
    return ordered


def _ids(entries: Any, key: str) -> list[str]:
    """Returns the ids of a list of objects, or nothing where one has none or two have the same."""
    if not isinstance(entries, (list, tuple)):
        return []
    found = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
    names = [name for name in found if isinstance(name, str)]
    return names if len(names) == len(found) == len(set(names)) else []
