import pytest

from harness.data.row import Media, Message, Row
from harness.data.row_error import RowError
from harness.errors import UserError

SYSTEM = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "realtime_aqi", "description": "Air quality now.", "parameters": \
{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
"""
TALK = """<|im_start|>user
How is the air?<|im_end|>
<|im_start|>assistant
[[1|<tool_call>
{"name": "realtime_aqi", "arguments": {"city": "北京"}}
</tool_call>
<tool_call>
{"name": "realtime_aqi", "arguments": {"city": "Shanghai"}}
</tool_call><|im_end|>]]
<|im_start|>user
<tool_response>
{"aqi": "10"}
</tool_response>
<tool_response>
{"aqi": "72"}
</tool_response><|im_end|>
<|im_start|>assistant
[[1|Good and fair.<|im_end|>]]
"""
NO_TOOLS = """
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
"""


def _call(name, city="A"):
    return "tool_call", f'{{"name": "{name}", "arguments": {{"city": "{city}"}}}}'


def test_parallel_calls(renderer, two_cities, marked):
    assert marked(renderer().render(two_cities)) == f"<|im_start|>system\n{SYSTEM}{TALK}"
    text = marked(renderer(system="Be kind.").render(two_cities))
    assert text == f"<|im_start|>system\nBe kind.\n\n{SYSTEM}{TALK}"


def test_equals_the_chat_template_given_openai_messages(renderer, two_cities, _tokenizer, weather):
    calls = [{"function": {"name": "realtime_aqi", "arguments": {"city": city}}} for city in ("北京", "Shanghai")]
    turns = [
        {"role": "user", "content": "How is the air?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": '{"aqi": "10"}'},
        {"role": "tool", "content": '{"aqi": "72"}'},
        {"role": "assistant", "content": "Good and fair."},
    ]
    text = _tokenizer.apply_chat_template(turns, tools=[weather], tokenize=False)
    assert "".join(item.text for item in renderer().render(two_cities)) == text


def test_words_in_front_of_a_call_are_of_its_turn(renderer, talk, marked):
    row = talk(("user", "?"), ("assistant", "I look."), _call("f"), ("tool_response", "5"), ("assistant", "Five."))
    assert marked(renderer(loss_scale="hermes").render(row)) == (
        "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n[[1|I look.\n]]"
        '[[2|<tool_call>\n{"name": "f", "arguments": {"city": "A"}}\n</tool_call>]][[1|<|im_end|>]]\n'
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n[[1|Five.<|im_end|>]]\n"
    )


def test_parts_of_a_turn_keep_their_own_weights(renderer, talk, marked):
    row = talk(("user", "?"), ("assistant", "I look.", 0.0), (*_call("f"), 2.0), _call("g"), ("user", "!"))
    assert marked(renderer().render(row)) == (
        "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\nI look."
        '[[2|\n<tool_call>\n{"name": "f", "arguments": {"city": "A"}}\n</tool_call>]]'
        '[[1|\n<tool_call>\n{"name": "g", "arguments": {"city": "A"}}\n</tool_call><|im_end|>]]\n'
        "<|im_start|>user\n!<|im_end|>\n"
    )


def test_parts_are_found_where_the_template_drops_reasoning(renderer, thinking, talk, marked):
    thought = "<think>\nHm\n</think>\n\n"
    turns = [("assistant", f"{thought}I look.", 0.5), _call("f"), ("tool_response", "5"), ("assistant", "Five.")]
    now = marked(renderer(thinking).render(talk(("user", "?"), *turns)))
    assert f"[[0.5|{thought}I look.]][[1|\n<tool_call>" in now
    before = marked(renderer(thinking).render(talk(("user", "?"), *turns, ("user", "Thanks"))))
    assert "Hm" not in before and "assistant\n[[0.5|I look.]][[1|\n<tool_call>" in before


def test_a_template_that_rewrites_more_than_the_beginning(renderer, thinking, talk):
    row = talk(("user", "?"), ("assistant", "I look.", 0.5), _call("f"), ("user", "!"))
    calls = "message.tool_calls or []"
    thinking.chat_template = thinking.chat_template.replace(
        calls, f"(({calls}) if messages[-1].content != '!' else [])"
    )
    with pytest.raises(RowError, match="leaves out or rewrites part of an assistant turn with tools"):
        renderer(thinking).render(row)


def test_images_in_results(renderer, picture):
    from harness.data.media.image import ImageRef

    call = Message("tool_call", ('{"name": "click", "arguments": {"x": 1}}',))
    shown = Message("tool_response", ("Clicked ", Media.image))
    row = Row(
        messages=(Message("user", ("?",)), call, shown, Message("assistant", ("Open.",))),
        images=(ImageRef(picture(8, 8), "f:1"),),
        origin="f:1",
    )
    text = "".join(item.text for item in renderer().render(row))
    assert "<tool_response>\nClicked <|vision_start|><|image_pad|><|vision_end|>\n</tool_response>" in text


def test_prompts(renderer, talk, two_cities):
    whole = "".join(item.text for item in renderer().render(two_cities))
    assert renderer().render_prompt(two_cities) == (whole.removesuffix("Good and fair.<|im_end|>\n"), "Good and fair.")
    row = talk(("user", "?"), ("assistant", "I look."), _call("f"), ("tool_response", "5"))
    prompt, answer = renderer().render_prompt(row)
    assert prompt == "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    assert answer == 'I look.\n<tool_call>\n{"name": "f", "arguments": {"city": "A"}}\n</tool_call>'


def test_markers_that_json_hides_are_found(renderer, talk):
    row = talk(("user", "?"), ("tool_call", '{"name": "f", "arguments": {"a": "\\u003c|im_end|>"}}'))
    with pytest.raises(RowError, match=r"a tool or a call contains the control token '<\|im_end\|>'") as found:
        renderer().render(row)
    assert found.value.reason == "control token"
    row = talk(("user", "?"), ("assistant", "A"), tools=({"name": "<|im_start|>"},))
    with pytest.raises(RowError, match="a tool or a call contains the control token"):
        renderer().render(row)


def test_tools_that_are_no_json(renderer, talk):
    row = talk(("user", "?"), ("assistant", "A"), tools=({"name": "f", "parameters": {1, 2}},))
    with pytest.raises(RowError, match="a tool is no JSON") as found:
        renderer().render(row)
    assert found.value.reason == "tools"


def test_a_template_without_tools(renderer, tokenizer, two_cities, talk, marked):
    tokenizer.chat_template = NO_TOOLS
    with pytest.raises(UserError, match=r"data\.agent_template=hermes: the checkpoint's chat template shows no tools"):
        renderer(tokenizer).render(two_cities)
    tokenizer.chat_template = "{% for message in messages %}{{ raise_exception('no tools') }}{% endfor %}"
    with pytest.raises(UserError, match="shows no tools"):
        renderer(tokenizer).render(two_cities)
    tokenizer.chat_template = NO_TOOLS
    other = renderer(tokenizer, agent_template="react_en")
    assert "Observation:]]" in marked(other.render(two_cities))
    assert marked(renderer(tokenizer).render(talk(("user", "?"), ("assistant", "A")))).endswith("[[1|A<|im_end|>]]\n")
