"""The format of Qwen-Agent up to Qwen2, in English and Chinese, for one call at a time or several at once.

As in ms-swift, a reply follows its results without the keyword for the reply, unless the data has it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from harness.data.template.agent.agent_format import AgentFormat, below
from harness.data.template.agent.call import description
from harness.data.template.agent.keyword import Keywords

KEYWORDS = Keywords("✿FUNCTION✿:", "✿ARGS✿:", "✿RESULT✿:")

_EN_TOOLS = """# Tools

## You have access to the following tools:

"""
_EN_TOOL = "### {human}\n\n{name}: {text} Parameters: {parameters} Format the arguments as a JSON object."
_EN = """

## When you need to call a tool, please insert the following command in your reply, which can be called zero or \
multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [{names}]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""
_EN_PARALLEL = """

## Insert the following command in your reply when you need to call N tools in parallel:

✿FUNCTION✿: The name of tool 1, should be one of [{names}]
✿ARGS✿: The input of tool 1
✿FUNCTION✿: The name of tool 2
✿ARGS✿: The input of tool 2
...
✿FUNCTION✿: The name of tool N
✿ARGS✿: The input of tool N
✿RESULT✿: The result of tool 1
✿RESULT✿: The result of tool 2
...
✿RESULT✿: The result of tool N
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""
_ZH_TOOLS = """# 工具

## 你拥有如下工具：

"""
_ZH_TOOL = "### {human}\n\n{name}: {text} 输入参数：{parameters} 此工具的输入应为JSON对象。"
_ZH = """

## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

✿FUNCTION✿: 工具名称，必须是[{names}]之一。
✿ARGS✿: 工具输入
✿RESULT✿: 工具结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""
_ZH_PARALLEL = """

## 你可以在回复中插入以下命令以并行调用N个工具：

✿FUNCTION✿: 工具1的名称，必须是[{names}]之一
✿ARGS✿: 工具1的输入
✿FUNCTION✿: 工具2的名称
✿ARGS✿: 工具2的输入
...
✿FUNCTION✿: 工具N的名称
✿ARGS✿: 工具N的输入
✿RESULT✿: 工具1的结果
✿RESULT✿: 工具2的结果
...
✿RESULT✿: 工具N的结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""


def _system(head: str, line: str, rules: str, tools: Sequence[dict[str, Any]], system: str) -> str:
    found = [description(tool) for tool in tools]
    lines = [line.format(name=name, human=human, text=text, parameters=given) for name, human, text, given in found]
    return below(system, head + "\n\n".join(lines) + rules.format(names=",".join(name for name, *_ in found)))


def _format(head: str, line: str, rules: str) -> AgentFormat:
    return AgentFormat(partial(_system, head, line, rules), KEYWORDS.calls, KEYWORDS.results)


EN = _format(_EN_TOOLS, _EN_TOOL, _EN)
ZH = _format(_ZH_TOOLS, _ZH_TOOL, _ZH)
EN_PARALLEL = _format(_EN_TOOLS, _EN_TOOL, _EN_PARALLEL)
ZH_PARALLEL = _format(_ZH_TOOLS, _ZH_TOOL, _ZH_PARALLEL)
