"""Fixtures of the template tests: rows in short form, and renderers with settings."""

from collections.abc import Callable
from typing import Any

import pytest

from harness.data.config import AgentTemplate, LossScale
from harness.data.row import Message, Row
from harness.data.template.render import Renderer

WEATHER = {
    "type": "function",
    "function": {
        "name": "realtime_aqi",
        "description": "Air quality now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

THINKING = """
{%- for tool in tools or [] %}{{ 'tool: ' + tool|tojson + '\n' }}{% endfor %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages -%}
{%- if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}
{%- set answer = message.content.split('</think>')[-1].lstrip('\n') %}
{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set thought = thought if '</think>' in message.content else '' %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\n' + thought + '\n</think>\n\n' + answer }}
{%- else %}{{ answer }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- if answer or not loop.first %}{{ '\n' }}{% endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments|tojson }}
{{- '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
"""Drops the reasoning of answers in front of the last question, and opens one in the generation prompt, as that of
Qwen3-VL's Thinking checkpoints does."""


@pytest.fixture
def thinking(tokenizer: Any) -> Any:
    """A tokenizer with the chat template of a Thinking checkpoint."""
    tokenizer.chat_template = THINKING
    return tokenizer


@pytest.fixture
def talk() -> Callable[..., Row]:
    """Makes a row from (role, text) or (role, text, weight)."""

    def make(*turns: tuple, **more: Any) -> Row:
        messages = tuple(Message(role, (text,), *weight) for role, text, *weight in turns)
        return Row(**{"messages": messages, "origin": "rows.jsonl:1", **more})

    return make


@pytest.fixture
def renderer(_tokenizer: Any) -> Callable[..., Renderer]:
    """Makes a renderer; enums may be given by name."""

    def make(tokenizer: Any = None, **settings: Any) -> Renderer:
        for key, enum in (("agent_template", AgentTemplate), ("loss_scale", LossScale)):
            if isinstance(settings.get(key), str):
                settings[key] = enum[settings[key]]
        return Renderer(tokenizer or _tokenizer, **settings)

    return make


@pytest.fixture
def marked() -> Callable[..., str]:
    """Writes segments as text, those that carry loss as [[weight|text]]."""

    def write(segments: Any) -> str:
        return "".join(f"[[{item.weight:g}|{item.text}]]" if item.weight else item.text for item in segments)

    return write


@pytest.fixture
def weather() -> dict[str, Any]:
    """A tool."""
    return WEATHER


@pytest.fixture
def two_cities(talk: Callable[..., Row]) -> Row:
    """ms-swift's own example: two calls at once, two results, a reply."""
    return talk(
        ("user", "How is the air?"),
        ("tool_call", '{"name": "realtime_aqi", "arguments": {"city": "北京"}}'),
        ("tool_call", '{"name": "realtime_aqi", "arguments": {"city": "Shanghai"}}'),
        ("tool_response", '{"aqi": "10"}'),
        ("tool_response", '{"aqi": "72"}'),
        ("assistant", "Good and fair."),
        tools=(WEATHER,),
    )
