PARAMETERS = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
EN = f"""<|im_start|>system
Answer the following questions as best you can. You have access to the following tools:

realtime_aqi: Call this tool to interact with the realtime_aqi API. What is the realtime_aqi API useful for? \
Air quality now. Parameters: {PARAMETERS} Format the arguments as a JSON object.

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [realtime_aqi]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
<|im_end|>
"""
ZH = f"""<|im_start|>system
尽可能地回答以下问题。你可以使用以下工具:

realtime_aqi: 调用此工具与 realtime_aqi API 进行交互。realtime_aqi 有什么用？Air quality now. \
输入参数：{PARAMETERS} 此工具的输入应为JSON对象。

请按照以下格式进行:

Question: 需要你回答的输入问题
Thought: 你应该总是思考该做什么
Action: 需要使用的工具，应该是[realtime_aqi]中的一个
Action Input: 传入工具的内容
Observation: 行动的结果
... (这个Thought/Action/Action Input/Observation可以重复N次)
Thought: 我现在知道最后的答案
Final Answer: 对原始输入问题的最终答案

现在开始！
<|im_end|>
"""
TALK = """<|im_start|>user
How is the air?<|im_end|>
<|im_start|>assistant
[[1|Action: realtime_aqi
Action Input: {"city": "北京"}
Action: realtime_aqi
Action Input: {"city": "Shanghai"}
Observation:]]{"aqi": "10"}
Observation:{"aqi": "72"}
[[1|Good and fair.<|im_end|>]]
"""


def test_english(renderer, two_cities, marked):
    assert marked(renderer(agent_template="react_en").render(two_cities)) == EN + TALK


def test_chinese(renderer, two_cities, marked):
    assert marked(renderer(agent_template="react_zh").render(two_cities)) == ZH + TALK


def test_several_tools_are_named_in_one_list(renderer, talk, weather):
    braces = {"name": "g", "description": "With {braces} and {names}."}
    row = talk(("user", "?"), ("assistant", "A"), tools=(weather, braces))
    text = renderer(agent_template="react_en").render(row)[0].text
    assert "JSON object.\n\ng: Call this tool to interact with the g API." in text
    assert "useful for? With {braces} and {names}. Parameters: {} Format" in text
    assert "should be one of [realtime_aqi,g]\n" in text
