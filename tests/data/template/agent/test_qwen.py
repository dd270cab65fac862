import pytest

PARAMETERS = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
EN = f"""<|im_start|>system
# Tools

## You have access to the following tools:

### realtime_aqi

realtime_aqi: Air quality now. Parameters: {PARAMETERS} Format the arguments as a JSON object.

"""
ZH = f"""<|im_start|>system
# 工具

## 你拥有如下工具：

### realtime_aqi

realtime_aqi: Air quality now. 输入参数：{PARAMETERS} 此工具的输入应为JSON对象。

"""
RULES = {
    "qwen_en": EN
    + """## When you need to call a tool, please insert the following command in your reply, which can be called \
zero or multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [realtime_aqi]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)<|im_end|>
""",
    "qwen_zh": ZH
    + """## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

✿FUNCTION✿: 工具名称，必须是[realtime_aqi]之一。
✿ARGS✿: 工具输入
✿RESULT✿: 工具结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来<|im_end|>
""",
    "qwen_en_parallel": EN
    + """## Insert the following command in your reply when you need to call N tools in parallel:

✿FUNCTION✿: The name of tool 1, should be one of [realtime_aqi]
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
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)<|im_end|>
""",
    "qwen_zh_parallel": ZH
    + """## 你可以在回复中插入以下命令以并行调用N个工具：

✿FUNCTION✿: 工具1的名称，必须是[realtime_aqi]之一
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
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来<|im_end|>
""",
}
TALK = """<|im_start|>user
How is the air?<|im_end|>
<|im_start|>assistant
[[1|✿FUNCTION✿: realtime_aqi
✿ARGS✿: {"city": "北京"}
✿FUNCTION✿: realtime_aqi
✿ARGS✿: {"city": "Shanghai"}
✿RESULT✿:]]{"aqi": "10"}
✿RESULT✿:{"aqi": "72"}
[[1|Good and fair.<|im_end|>]]
"""


@pytest.mark.parametrize("name", RULES)
def test_the_four_prompts(renderer, two_cities, marked, name):
    assert marked(renderer(agent_template=name).render(two_cities)) == RULES[name] + TALK


def test_with_its_own_weights(renderer, two_cities, marked):
    text = marked(renderer(agent_template="qwen_en", loss_scale="qwen").render(two_cities))
    assert text.endswith(TALK.replace("[[1|✿FUNCTION", "[[2|✿FUNCTION"))
