"""A row's tools and calls, checked."""

import json
from dataclasses import dataclass
from typing import Any

from harness.data.row import Message, Row
from harness.data.row_error import RowError


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]

    @property
    def json(self) -> str:
        """The arguments as JSON in one line."""
        return dump(self.arguments)


def dump(value: Any, indent: int | None = None) -> str:
    """Writes JSON as the chat template does: characters of other scripts stand for themselves."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def parse_call(row: Row, message: Message, number: int) -> Call:
    """Reads a `tool_call` message: `{"name": ..., "arguments": {...}}`.

    Args:
        row: For messages.
        message: The call.
        number: Its place in the row, from 1.

    Raises:
        RowError: It is none.
    """
    where = f"message {number}, a tool_call,"
    if any(not isinstance(part, str) for part in message.parts):
        raise RowError(row.origin, "tool call", f"{where} shows an image or video; the model writes text only")
    value = _parse(message.text)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or not name:
        remedy = 'write {"name": "...", "arguments": {...}} as JSON'
        raise RowError(row.origin, "tool call", f"{where} is {message.text[:60]!r}; {remedy}")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parse(arguments)
    if not isinstance(arguments, dict):
        remedy = 'its "arguments" must be a JSON object, {} for none'
        raise RowError(row.origin, "tool call", f"{where} calls {name!r}; {remedy}")
    return Call(name, arguments)


def schemas(row: Row) -> list[dict[str, Any]]:
    """Returns a row's tools as `{"type": "function", "function": {"name": ...}}`.

    Raises:
        RowError: One of them is no JSON schema of a function.
    """
    return [_schema(row, tool, number) for number, tool in enumerate(row.tools, start=1)]


def description(schema: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns a tool's name for the model, name for people, description, and parameters as JSON."""
    function = schema["function"]
    name = function["name"]
    parameters = function.get("parameters") or {}
    text = function.get("description", function.get("description_for_model"))
    return (
        name,
        str(function.get("name_for_human") or name),
        str(text or ""),
        parameters if isinstance(parameters, str) else dump(parameters),
    )


def _schema(row: Row, tool: Any, number: int) -> dict[str, Any]:
    schema = _parse(tool) if isinstance(tool, str) else tool
    if isinstance(schema, dict) and "type" not in schema and "function" not in schema:
        schema = {"type": "function", "function": schema}
    function = schema.get("function") if isinstance(schema, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        detail = f"tool {number} has no function name"
        remedy = 'write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise RowError(row.origin, "tools", f"{detail}; {remedy}")
    return schema


def _parse(text: str) -> Any:
    """Returns the value of a JSON text, or None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
