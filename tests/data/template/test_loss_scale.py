import pytest

from harness.data.config import LossScale
from harness.data.row_error import RowError
from harness.data.template.loss_scale import weigh

REACT = (
    "Let me see.\nThought: I need it\nAction: look\nAction Input: {}\nObservation: 5\nThought: done\nFinal Answer: 5"
)


def _weigh(mode, text):
    return [(piece, weight) for piece, weight in weigh(LossScale[mode], text) if piece]


@pytest.mark.parametrize("mode", [mode.name for mode in LossScale])
@pytest.mark.parametrize("text", ["", "plain", REACT, "<think>\n\n</think>\n\nA<tool_call>x</tool_call>"])
def test_no_text_is_lost(mode, text):
    assert "".join(piece for piece, _ in weigh(LossScale[mode], text)) == text


def test_react():
    assert _weigh("react", REACT) == [
        ("Let me see.\n", 1),
        ("Thought:", 1),
        (" I need it\n", 1),
        ("Action:", 2),
        (" look\n", 2),
        ("Action Input:", 2),
        (" {}\n", 2),
        ("Observation:", 2),
        (" 5\n", 0),
        ("Thought:", 1),
        (" done\n", 1),
        ("Final Answer:", 1),
        (" 5", 1),
    ]


def test_alpha_umi_adds_the_next_step():
    assert _weigh("alpha_umi", "Thought: a\nNext: caller.") == [
        ("Thought:", 1),
        (" a\n", 1),
        ("Next:", 2),
        (" caller.", 2),
    ]
    assert dict(_weigh("react", "Next: caller.")) == {"Next: caller.": 1}


def test_agentflan_weighs_what_follows():
    assert _weigh("agentflan", "Name: f Command run Action Input: {} Observation: 1") == [
        ("Name:", 1),
        (" f ", 3),
        ("Command", 1),
        (" run ", 3),
        ("Action Input:", 1),
        (" {} ", 3),
        ("Observation:", 2),
        (" 1", 0),
    ]


def test_qwen():
    text = "Well ✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿: 1\n✿RETURN✿: one"
    assert _weigh("qwen", text) == [
        ("Well ", 1),
        ("✿FUNCTION✿:", 2),
        (" f\n", 2),
        ("✿ARGS✿:", 2),
        (" {}\n", 2),
        ("✿RESULT✿:", 2),
        (" 1\n", 0),
        ("✿RETURN✿:", 1),
        (" one", 1),
    ]


def test_hermes_weighs_calls_twice():
    text = "I look.\n<tool_call>\n{}\n</tool_call>\n<tool_call>b</tool_call><tool_call>open"
    assert _weigh("hermes", text) == [
        ("I look.\n", 1),
        ("<tool_call>\n{}\n</tool_call>", 2),
        ("\n", 1),
        ("<tool_call>b</tool_call>", 2),
        ("<tool_call>open", 1),
    ]


def test_only_an_empty_block_at_the_beginning_is_ignored():
    assert _weigh("ignore_empty_think", "<think>\n\n</think>\n\nA") == [("<think>\n\n</think>\n\n", 0), ("A", 1)]
    for text in ("<think>\nHm\n</think>\n\nA", "A <think>\n\n</think>\n\n"):
        assert _weigh("ignore_empty_think", text) == [(text, 1)]


def test_modes_by_turn(renderer, talk, marked):
    row = talk(
        ("system", "S"),
        ("user", "1"),
        ("assistant", "one"),
        ("user", "2"),
        ("assistant", "two"),
        ("assistant", "more"),
    )
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    middle, last = "\n<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>assistant\n"

    default = f"{head}[[1|one<|im_end|>]]{middle}[[1|two<|im_end|>]]{last}[[1|more<|im_end|>]]\n"
    assert marked(renderer().render(row)) == default
    last_round = f"{head}one<|im_end|>{middle}[[1|two<|im_end|>]]{last}[[1|more<|im_end|>]]\n"
    assert marked(renderer(loss_scale="last_round").render(row)) == last_round
    everything = f"[[1|{head}]][[1|one<|im_end|>{middle}]][[1|two<|im_end|>{last}]][[1|more<|im_end|>\n]]"
    assert marked(renderer(loss_scale="all").render(row)) == everything


def test_a_turns_own_weight_wins_in_every_mode(renderer, talk):
    answer = "Thought: a\nAction: b\nAction Input: {}"
    row = talk(("user", "1"), ("assistant", answer, 0.5), ("user", "2"), ("assistant", answer, 0.0))
    for mode in LossScale:
        found = [item for item in renderer(loss_scale=mode).render(row) if item.text.startswith("Thought")]
        assert [item.weight for item in found] == [0.5, 0.0], mode
        assert found[0].text == answer + "<|im_end|>", mode


def test_the_end_token_of_a_weighted_answer_has_weight_one(renderer, talk, marked):
    row = talk(("user", "1"), ("assistant", "Action: b\nObservation: 3"))
    text = marked(renderer(loss_scale="react").render(row))
    assert text.endswith("assistant\n[[2|Action: b\nObservation:]] 3[[1|<|im_end|>]]\n")


@pytest.mark.parametrize("role", ["system", "user", "tool_response"])
def test_a_weight_that_can_have_no_effect_is_refused(renderer, talk, role):
    turns = [("user", "?"), ("assistant", "A"), ("user", "?"), ("assistant", "A")]
    turns.insert(0 if role == "system" else 2, (role, "x", 1.0))
    with pytest.raises(
        RowError, match=rf"has a loss weight and the role {role}; only assistant and tool_call"
    ) as found:
        renderer().render(talk(*turns))
    assert found.value.reason == "loss weight"


def test_a_weight_of_none_on_what_is_not_learnt_says_nothing_new(renderer, talk, marked):
    row = talk(("user", "?", 0.0), ("assistant", "A"))
    assert marked(renderer().render(row)).endswith("?<|im_end|>\n<|im_start|>assistant\n[[1|A<|im_end|>]]\n")
    with pytest.raises(RowError, match="message 1 has a loss weight"):
        renderer(loss_scale="all").render(row)
