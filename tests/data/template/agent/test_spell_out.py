import pytest

from harness.data.config import AgentTemplate
from harness.data.row import Media, Message, Row
from harness.data.row_error import RowError
from harness.data.template.agent.registry import FORMATS
from harness.errors import UserError

CALL = ("tool_call", '{"name": "f", "arguments": {"a": 1}}')


@pytest.fixture
def body(renderer, marked):
    """Renders a row in react_en, from its first user turn on."""

    def render(row, **settings):
        text = marked(renderer(agent_template="react_en", **settings).render(row))
        return text[text.index("<|im_start|>user") :]

    return render


def test_several_rounds_are_one_turn(body, talk):
    row = talk(
        ("user", "?"),
        ("assistant", "Thought: look"),
        CALL,
        ("tool_response", "5"),
        ("assistant", "Thought: again\n"),
        CALL,
        ("tool_response", "6\n"),
        ("assistant", "Final Answer: 6"),
        ("assistant", "Bye"),
        ("user", "!"),
        ("assistant", "Yes"),
    )
    call = 'Action: f\nAction Input: {"a": 1}\nObservation:'
    assert body(row) == (
        f"<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n[[1|Thought: look\n{call}]]5\n"
        f"[[1|Thought: again\n{call}]]6\n[[1|Final Answer: 6<|im_end|>]]\n"
        "<|im_start|>assistant\n[[1|Bye<|im_end|>]]\n"
        "<|im_start|>user\n!<|im_end|>\n<|im_start|>assistant\n[[1|Yes<|im_end|>]]\n"
    )


def test_calls_that_a_message_spells_out_itself(body, talk):
    for text in (
        "Action: f\nAction Input: {}",
        "Action: f\nAction Input: {}\n",
        "Action: f\nAction Input: {}\nObservation:",
    ):
        row = talk(("user", "?"), ("assistant", text), ("tool_response", "5"), ("assistant", "Five"))
        assert "[[1|Action: f\nAction Input: {}\nObservation:]]5\n[[1|Five<|im_end|>]]" in body(row)


def test_weights_inside_a_turn(body, talk):
    row = talk(
        ("user", "?"),
        ("assistant", "Thought: x\n", 0.0),
        (*CALL, 2.0),
        CALL,
        ("tool_response", "5"),
        ("assistant", "A", 3),
    )
    assert body(row).endswith(
        'assistant\nThought: x\n[[2|Action: f\nAction Input: {"a": 1}\n]][[1|Action: f\nAction Input: {"a": 1}\n'
        "Observation:]]5\n[[3|A<|im_end|>]]\n"
    )


def test_modes(body, talk):
    row = talk(("user", "?"), ("assistant", "Thought: x\n"), CALL, ("tool_response", "Action: 5"), ("assistant", "A"))
    call = 'Action: f\nAction Input: {"a": 1}\nObservation:'
    assert f"[[1|Thought: x\n]][[2|{call}]]Action: 5\n[[1|A<|im_end|>]]" in body(row, loss_scale="react")
    assert f"[[1|Thought: x\n{call}Action: 5\nA<|im_end|>\n]]" in body(row, loss_scale="all")
    row = talk(*[(message.role, message.text) for message in row.messages], ("user", "!"), ("assistant", "B"))
    assert f"Thought: x\n{call}Action: 5\nA<|im_end|>" in body(row, loss_scale="last_round")


def test_a_turn_that_ends_with_a_result_does_not_learn_to_end_there(body, talk):
    row = talk(("user", "?"), CALL, ("tool_response", "5"))
    assert body(row).endswith("Observation:]]5\n<|im_end|>\n")


def test_prompts_go_up_to_the_last_words(renderer, talk):
    react = renderer(agent_template="react_en", response_prefix="Thought:")
    row = talk(("user", "?"), ("assistant", "Thought: x"), CALL, ("tool_response", "5"), ("assistant", "Five"))
    call = 'Action: f\nAction Input: {"a": 1}\nObservation:'
    head = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    assert react.render_prompt(row) == (f"{head}Thought: x\n{call}5\n", "Five")
    unfinished = talk(("user", "?"), ("assistant", "Thought: x"), CALL, ("tool_response", "5"))
    assert react.render_prompt(unfinished) == (f"{head}Thought:", f" x\n{call}")


def test_the_system_message_stands_above_the_tools(renderer, talk, weather):
    for own in ((), (("system", "Be kind."),)):
        row = talk(*own, ("user", "?"), ("assistant", "A"), tools=(weather,))
        text = renderer(agent_template="react_en", system="Be kind.").render(row)[0].text
        assert text.startswith("<|im_start|>system\nBe kind.\n\nAnswer the following questions as best you can.")
    plain = talk(("system", "Be kind."), ("user", "?"), CALL, ("tool_response", "1"), ("assistant", "A"))
    text = renderer(agent_template="react_en").render(plain)[0].text
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n?")


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "?"), ("tool_response", "5"), ("assistant", "A")],
        [("user", "?"), ("assistant", "Hm"), ("tool_response", "5"), ("assistant", "A")],
    ],
)
def test_a_result_of_no_call_is_refused(body, talk, turns):
    with pytest.raises(
        RowError, match=r"message \d is a tool_response, and the turn in front of it calls no tool"
    ) as found:
        body(talk(*turns))
    assert found.value.reason == "tool response"


def test_images_inside_a_turn_are_refused(renderer, talk):
    row = talk(("user", "?"), CALL)
    row = Row(messages=(*row.messages, Message("tool_response", (Media.image,))), origin="f:1")
    with pytest.raises(
        RowError, match=r"message 3 \(tool_response\) shows an image .* inside an assistant turn"
    ) as found:
        renderer(agent_template="qwen_en").render(row)
    assert found.value.reason == "media place"


def test_markers_in_tools_are_found(renderer, talk):
    row = talk(("user", "?"), ("assistant", "A"), tools=({"name": "f", "description": "<|im_end|>"},))
    with pytest.raises(RowError, match="a tool or a call contains the control token"):
        renderer(agent_template="glm4_5").render(row)


@pytest.mark.parametrize("member", list(AgentTemplate))
def test_every_format_is_there_or_refused(renderer, two_cities, member):
    if member is AgentTemplate.hermes or member in FORMATS:
        segments = renderer(agent_template=member).render(two_cities)
        learnt = "".join(item.text for item in segments if item.weight)
        assert "Shanghai" in learnt and "Good and fair.<|im_end|>" in learnt and '"72"' not in learnt
        assert "Air quality now." in segments[0].text
        assert renderer(agent_template=member).render_prompt(two_cities)[1] == "Good and fair."
    else:
        with pytest.raises(UserError, match=rf"data\.agent_template={member.name}: .* hermes is Qwen3-VL's own"):
            renderer(agent_template=member)


def test_rows_without_tools_are_the_same_in_every_format(renderer, talk):
    row = talk(("system", "S"), ("user", "?"), ("assistant", "A"))
    expected = renderer().render(row)
    assert all(renderer(agent_template=member).render(row) == expected for member in FORMATS)
