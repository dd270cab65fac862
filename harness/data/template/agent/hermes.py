"""The chat template's own way with tools: Qwen3-VL's is that of Hermes."""

from typing import Any

from harness.data.row import Row
from harness.data.template.agent.call import Call, parse_call, schemas
from harness.data.template.chat import TEMPLATE_ERRORS
from harness.data.template.conversation import WRITTEN, Conversation, Part, content, start


def turns(row: Row, system: str | None) -> Conversation:
    """Hands tools, calls and results over as the chat template takes them.

    Calls go into the assistant turn in front of them, or into one of their own.

    Raises:
        RowError: A tool or a call can not be read.
    """
    conversation = start(row, system)
    conversation.tools = schemas(row) or None
    before = ""
    for number, message in enumerate(row.messages, start=1):
        if message.role == "tool_call":
            call = entry(parse_call(row, message, number))
            part = Part("", message.weight, call=call)
            if before in WRITTEN:
                conversation.answers[-1].parts.append(part)
                conversation.turns[-1].setdefault("tool_calls", []).append(call)
            else:
                conversation.add_answer("", part)["tool_calls"] = [call]
        elif message.role == "assistant":
            conversation.add_answer(content(message), Part(message.text, message.weight))
        else:
            conversation.add("tool" if message.role == "tool_response" else message.role, content(message))
        before = message.role
    return conversation


def entry(call: Call) -> dict[str, Any]:
    """Returns a call as templates know it."""
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def knows_tools(tokenizer: Any) -> bool:
    """Says whether a tokenizer's chat template shows tools, calls and results."""
    tool = {"type": "function", "function": {"name": "probed_tool", "description": "", "parameters": {}}}
    probe = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [entry(Call("probed_call", {"a": 1}))]},
        {"role": "tool", "content": "probed_result"},
        {"role": "assistant", "content": "."},
    ]
    try:
        text = tokenizer.apply_chat_template(probe, tools=[tool], tokenize=False)
    except TEMPLATE_ERRORS:
        return False
    return all(name in text for name in ("probed_tool", "probed_call", "probed_result"))
