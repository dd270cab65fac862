PROMPT_4 = """<|im_start|>system
# 可用工具

## realtime_aqi

{
    "name": "realtime_aqi",
    "description": "Air quality now.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {
                "type": "string"
            }
        },
        "required": [
            "city"
        ]
    }
}
在调用上述函数时，请使用 Json 格式表示调用的参数。<|im_end|>
"""
TALK_4 = """<|im_start|>user
How is the air?<|im_end|>
<|im_start|>assistant
[[1|realtime_aqi
{"city": "北京"}<|assistant|>realtime_aqi
{"city": "Shanghai"}<|observation|>]]
{"aqi": "10"}<|observation|>
{"aqi": "72"}<|assistant|>
[[1|Good and fair.<|im_end|>]]
"""
PROMPT_4_5 = """<|im_start|>system
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "realtime_aqi", "description": "Air quality now.", "parameters": \
{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>"""
TALK_4_5 = """<|im_end|>
<|im_start|>user
How is the air?<|im_end|>
<|im_start|>assistant
[[1|<tool_call>realtime_aqi
<arg_key>city</arg_key>
<arg_value>北京</arg_value>
</tool_call>
<tool_call>realtime_aqi
<arg_key>city</arg_key>
<arg_value>Shanghai</arg_value>
</tool_call><|observation|>]]
<tool_response>
{"aqi": "10"}
</tool_response>
<tool_response>
{"aqi": "72"}
</tool_response><|assistant|>
[[1|Good and fair.<|im_end|>]]
"""


def test_glm4(renderer, two_cities, marked):
    assert marked(renderer(agent_template="glm4").render(two_cities)) == PROMPT_4 + TALK_4


def test_glm4_5(renderer, two_cities, marked):
    assert marked(renderer(agent_template="glm4_5").render(two_cities)) == PROMPT_4_5 + TALK_4_5
    text = marked(renderer(agent_template="glm4_5", system=" Be kind. ").render(two_cities))
    assert text == f"{PROMPT_4_5}<|system|>\nBe kind.{TALK_4_5}"


def test_arguments_that_are_no_text_are_json(renderer, talk, marked):
    row = talk(("user", "?"), ("tool_call", '{"name": "f", "arguments": {"n": 1, "on": true, "of": ["a"]}}'))
    text = marked(renderer(agent_template="glm4_5").render(row))
    for value in ("1", "true", '["a"]'):
        assert f"<arg_value>{value}</arg_value>" in text


def test_the_stop_is_put_behind_calls_that_a_message_spells_out_itself(renderer, talk, marked):
    row = talk(("user", "?"), ("assistant", "f\n{}"), ("tool_response", "5"), ("assistant", "A"))
    text = marked(renderer(agent_template="glm4").render(row))
    assert text.endswith("[[1|f\n{}<|observation|>]]\n5<|assistant|>\n[[1|A<|im_end|>]]\n")
