"""ReAct prompts in English and Chinese, as Qwen's documentation gives them."""

from collections.abc import Sequence
from typing import Any

from harness.data.template.agent.agent_format import AgentFormat, below
from harness.data.template.agent.call import description
from harness.data.template.agent.keyword import REACT

_EN = """Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
"""
_EN_TOOL = (
    "{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? {text} "
    "Parameters: {parameters} Format the arguments as a JSON object."
)
_ZH = """尽可能地回答以下问题。你可以使用以下工具:

{tools}

请按照以下格式进行:

Question: 需要你回答的输入问题
Thought: 你应该总是思考该做什么
Action: 需要使用的工具，应该是[{names}]中的一个
Action Input: 传入工具的内容
Observation: 行动的结果
... (这个Thought/Action/Action Input/Observation可以重复N次)
Thought: 我现在知道最后的答案
Final Answer: 对原始输入问题的最终答案

现在开始！
"""
_ZH_TOOL = (
    "{name}: 调用此工具与 {human} API 进行交互。{human} 有什么用？{text} "
    "输入参数：{parameters} 此工具的输入应为JSON对象。"
)


def _system(prompt: str, line: str, tools: Sequence[dict[str, Any]], system: str) -> str:
    found = [description(tool) for tool in tools]
    lines = [line.format(name=name, human=human, text=text, parameters=given) for name, human, text, given in found]
    return below(system, prompt.format(tools="\n\n".join(lines), names=",".join(name for name, *_ in found)))


def _system_en(tools: Sequence[dict[str, Any]], system: str) -> str:
    return _system(_EN, _EN_TOOL, tools, system)


def _system_zh(tools: Sequence[dict[str, Any]], system: str) -> str:
    return _system(_ZH, _ZH_TOOL, tools, system)


EN = AgentFormat(_system_en, REACT.calls, REACT.results)
ZH = AgentFormat(_system_zh, REACT.calls, REACT.results)
