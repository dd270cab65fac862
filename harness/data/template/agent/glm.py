"""The formats of GLM-4 (0414) and GLM-4.5, with their role tokens as plain text, as ms-swift writes them for Qwen.

`<|observation|>`, at which those models stop for a result, is learnt as part of a call. Qwen3-VL has no such token: a
server needs it as a stop string.
"""

from collections.abc import Sequence
from typing import Any

from harness.data.template.agent.agent_format import AgentFormat, below
from harness.data.template.agent.call import Call, dump

_STOP = "<|observation|>"
_REPLY = "<|assistant|>"

_TOOLS_4_5 = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_RULES_4_5 = """
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>"""


def _system_4(tools: Sequence[dict[str, Any]], system: str) -> str:
    lines = [
        f"## {tool['function']['name']}\n\n{dump(tool['function'], indent=4)}\n"
        "在调用上述函数时，请使用 Json 格式表示调用的参数。"
        for tool in tools
    ]
    return below(system, "# 可用工具\n\n" + "\n".join(lines))


def _calls_4(calls: Sequence[Call]) -> list[str]:
    texts = [(_REPLY if number else "") + f"{call.name}\n{call.json}" for number, call in enumerate(calls)]
    return [*texts[:-1], texts[-1] + _STOP]


def _results_4(written: str, results: Sequence[str]) -> tuple[str, str]:
    return _stop(written), "\n" + f"{_STOP}\n".join(results) + f"{_REPLY}\n"


def _system_4_5(tools: Sequence[dict[str, Any]], system: str) -> str:
    text = _TOOLS_4_5 + "\n".join(dump(tool) for tool in tools) + _RULES_4_5
    return f"{text}<|system|>\n{system.strip()}" if system.strip() else text


def _calls_4_5(calls: Sequence[Call]) -> list[str]:
    texts = []
    for number, call in enumerate(calls):
        lines = [f"<tool_call>{call.name}"]
        for key, value in call.arguments.items():
            lines.append(f"<arg_key>{key}</arg_key>")
            lines.append(f"<arg_value>{value if isinstance(value, str) else dump(value)}</arg_value>")
        texts.append(("\n" if number else "") + "\n".join([*lines, "</tool_call>"]))
    return [*texts[:-1], texts[-1] + _STOP]


def _results_4_5(written: str, results: Sequence[str]) -> tuple[str, str]:
    texts = [f"\n<tool_response>\n{text}\n</tool_response>" for text in results]
    return _stop(written), "".join(texts) + f"{_REPLY}\n"


def _stop(written: str) -> str:
    return "" if written.endswith(_STOP) else _STOP


GLM4 = AgentFormat(_system_4, _calls_4, _results_4)
GLM4_5 = AgentFormat(_system_4_5, _calls_4_5, _results_4_5)
