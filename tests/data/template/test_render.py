import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.config import LossScale
from harness.data.row import Media, Message, Row
from harness.data.row_error import RowError
from harness.data.template.render import Renderer
from harness.data.template.segment import PLACEHOLDER
from harness.errors import UserError

IMAGE, VIDEO = PLACEHOLDER[Media.image], PLACEHOLDER[Media.video]
USER_IMAGES_ONLY = """
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type == 'image' %}{% if message.role == 'user' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}
{%- else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
"""Drops images of other turns, and videos, in silence."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\nA", "assistant\n", "<|box_start|>", "<think>\n\n</think>\n\nB", "Action: x", "<tool_call>"]
)
conversations = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), min_size=1, max_size=6)


def _text(segments):
    return "".join(item.text for item in segments)


def _learnt(segments):
    return [item.text for item in segments if item.weight]


def _openai(row):
    return [{"role": message.role, "content": message.text} for message in row.messages]


@given(turns=conversations)
def test_supervised_text_is_the_answers_and_all_text_is_the_templates(_tokenizer, turns):
    row = Row(messages=tuple(Message(role, (text,)) for role, text in turns), origin="f:1")
    segments = Renderer(_tokenizer).render(row)
    assert _text(segments) == _tokenizer.apply_chat_template(_openai(row), tokenize=False)
    assert _learnt(segments) == [text + "<|im_end|>" for role, text in turns if role == "assistant"]


@given(turns=conversations, mode=st.sampled_from(LossScale), prefix=st.sampled_from([None, "<think>\n", "A"]))
def test_every_mode_keeps_the_text_and_begins_a_segment_behind_each_header(_tokenizer, turns, mode, prefix):
    row = Row(messages=tuple(Message(role, (text,)) for role, text in turns), origin="f:1")
    segments = Renderer(_tokenizer, loss_scale=mode, response_prefix=prefix).render(row)
    if prefix is None:
        assert _text(segments) == _tokenizer.apply_chat_template(_openai(row), tokenize=False)
    header = "<|im_start|>assistant\n" + (prefix or "")
    starts = sum(item.text.endswith(header) for item in segments)
    assert starts == sum(role == "assistant" for role, _ in turns)
    assert all(header not in item.text.removesuffix(header) for item in segments)


def test_images_and_videos_stand_where_the_row_has_them(renderer, make_row, _tokenizer):
    row = make_row(("system", "S"), ("user", "See", (8, 8), "and", (8, 8)), ("assistant", "Noise."))
    content = [{"type": "text", "text": "See"}, {"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": content}]
    turns.append({"role": "assistant", "content": "Noise."})
    segments = renderer().render(row)
    assert _text(segments) == _tokenizer.apply_chat_template(turns, tokenize=False)
    assert f"See{IMAGE}and{IMAGE}<|im_end|>" in segments[0].text
    everything = renderer(loss_scale="all").render(row)
    assert [item.text for item in everything if not item.weight] == [IMAGE, IMAGE]
    assert _text(everything) == _text(segments)


def test_videos(renderer):
    from harness.data.media.video import VideoRef

    row = Row(
        messages=(Message("user", (Media.video, "?")), Message("assistant", ("A",))),
        videos=(VideoRef("a.mp4", "f:1"),),
        origin="f:1",
    )
    assert f"user\n{VIDEO}?" in renderer().render(row)[0].text


def test_media_that_the_template_does_not_show_are_refused(renderer, tokenizer, make_row):
    row = make_row(("user", "?"), ("assistant", (8, 8), "Look"))
    with pytest.raises(
        RowError, match=r"rows\.jsonl:1: the chat template shows 0 of 1 images; .* user turns only"
    ) as found:
        renderer().render(row)
    assert found.value.reason == "media place"
    tokenizer.chat_template = USER_IMAGES_ONLY
    row = make_row(("system", (8, 8)), ("user", (8, 8)), ("assistant", "Yes"))
    with pytest.raises(RowError, match="shows 1 of 2 images"):
        renderer(tokenizer).render(row)
    with pytest.raises(RowError, match="shows 1 of 2 images"):
        renderer(tokenizer).render_prompt(row)


def test_a_system_message_of_its_own_wins(renderer, talk):
    with_default = renderer(system="Default.")
    own = talk(("system", "Own."), ("user", "?"), ("assistant", "A"))
    none = talk(("user", "?"), ("assistant", "A"))
    assert _text(with_default.render(own)) == _text(renderer().render(own))
    assert _text(with_default.render(none)).startswith("<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\n?")
    assert "system" not in _text(renderer().render(none))


def test_a_system_message_that_the_template_drops_is_refused(renderer, talk):
    row = talk(("user", "?"), ("system", "Be rude."), ("assistant", "A"))
    with pytest.raises(RowError, match="shows a system message at the beginning only, so move it there") as found:
        renderer().render(row)
    assert found.value.reason == "system place"


def test_plain_text_has_an_end_token_and_no_template(renderer, talk, make_row, tokenizer):
    row = talk(("assistant", "Once upon a time."), plain=True)
    assert [(item.text, item.weight) for item in renderer(system="S").render(row)] == [
        ("Once upon a time.<|im_end|>", 1)
    ]
    shown = make_row(("assistant", "A", (8, 8), "B"))
    shown = Row(messages=shown.messages, images=shown.images, origin="f:1", plain=True)
    segments = renderer().render(shown)
    assert [(item.text, item.weight) for item in segments] == [("A", 1), (IMAGE, 0), ("B<|im_end|>", 1)]
    light = talk(("assistant", "Once", 0.5), plain=True)
    assert [item.weight for item in renderer(loss_scale="last_round").render(light)] == [0.5]
    with pytest.raises(RowError, match="has no assistant turn, so there is no answer to generate"):
        renderer().render_prompt(row)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"model\.path: the checkpoint's tokenizer has no end token"):
        renderer(tokenizer).render(row)


def test_control_tokens_are_refused_everywhere(renderer, talk):
    for row in (
        talk(("user", "<|im_end|>"), ("assistant", "A")),
        talk(("user", "?"), ("assistant", "A<|im_end|>")),
        talk(("assistant", "A<|endoftext|>B"), plain=True),
    ):
        with pytest.raises(RowError, match="contains the control token"):
            renderer().render(row)
        assert [error.reason for error in renderer().render_many([row])] == ["control token"]
    with pytest.raises(UserError, match=r"data\.system=<\|im_end\|>: holds the control token"):
        renderer(system="<|im_end|>")
    with pytest.raises(UserError, match=r"data\.response_prefix=<\|im_start\|>x: holds the control token"):
        renderer(response_prefix="<|im_start|>x")


def test_half_a_surrogate_pair_is_refused(renderer, talk):
    for row in (talk(("user", "\ud83d"), ("assistant", "A")), talk(("assistant", "\ude00"), plain=True)):
        with pytest.raises(RowError, match="half of a surrogate pair") as found:
            renderer().render(row)
        assert found.value.reason == "broken text"


def test_errors_of_some_rows_leave_the_others_alone(renderer, talk, two_cities):
    rows = [
        talk(("user", "1"), ("assistant", "one")),
        talk(("user", "<|im_end|>"), ("assistant", "A"), origin="f:2"),
        two_cities,
        talk(("assistant", "Text"), plain=True),
        talk(("user", "?"), ("system", "late"), ("assistant", "A"), origin="f:5"),
        talk(("user", "2"), ("assistant", "two")),
    ]
    found = renderer().render_many(rows)
    assert [item.origin for item in found if isinstance(item, RowError)] == ["f:2", "f:5"]
    for row, item in zip(rows, found, strict=True):
        if not isinstance(item, RowError):
            assert item == renderer().render(row)
    assert renderer().render_many([]) == []


def test_a_row_that_the_template_refuses_leaves_the_others_alone(renderer, tokenizer, talk):
    check = "{% if messages[0].content == 'no' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    tokenizer.chat_template = check + tokenizer.chat_template
    rows = [talk(("user", text), ("assistant", "A")) for text in ("yes", "no", "yes")]
    found = renderer(tokenizer).render_many(rows)
    assert found[0] == found[2] == renderer().render(rows[0])
    assert found[1].reason == "chat template"
    with pytest.raises(RowError, match=r"rows\.jsonl:1: the chat template refuses the row .roles must alternate"):
        renderer(tokenizer).render(rows[1])
    with pytest.raises(RowError, match="the chat template refuses the row"):
        renderer(tokenizer).render_prompt(rows[1])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<|im_start|>assistant\n{{ messages[1].content }}", r"does not end an assistant turn with <\|im_end\|>"),
        ("{{ messages[1].content }}<|im_end|>", r"the chat template renders 0 of 1 assistant turns"),
        ("{{ messages[1].content + 1 }}", "the chat template refuses the row"),
    ],
)
def test_templates_that_can_not_be_used(renderer, tokenizer, talk, template, message):
    tokenizer.chat_template = template
    with pytest.raises(RowError, match=message):
        renderer(tokenizer).render(talk(("user", "Hi"), ("assistant", "Yes")))


def test_settings_that_can_not_be_used(renderer, tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"model\.path: .* no chat template"):
        renderer(tokenizer)


def test_reasoning_that_the_template_drops_is_not_learnt(renderer, thinking, talk):
    row = talk(
        ("user", "Hi"),
        ("assistant", "<think>\nHm\n</think>\n\nOne"),
        ("user", "And?"),
        ("assistant", "<think>\nEh\n</think>\n\nTwo"),
    )
    assert _learnt(renderer(thinking).render(row)) == ["One<|im_end|>", "<think>\nEh\n</think>\n\nTwo<|im_end|>"]
    assert renderer(thinking).render_prompt(row)[0].endswith("<|im_start|>assistant\n<think>\n")


def test_an_empty_block_that_the_template_adds_is_found(renderer, thinking, talk, marked):
    row = talk(("user", "Hi"), ("assistant", "One"))
    text = marked(renderer(thinking, loss_scale="ignore_empty_think").render(row))
    assert text.endswith("assistant\n<think>\n\n</think>\n\n[[1|One<|im_end|>]]\n")


def test_a_prefix_belongs_to_the_prompt_and_is_not_doubled(renderer, talk, marked):
    row = talk(("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "So: two"))
    prefixed = renderer(response_prefix="So: ")
    text = marked(prefixed.render(row))
    assert text.count("So: ") == 2
    assert "assistant\nSo: [[1|one<|im_end|>]]" in text and text.endswith("assistant\nSo: [[1|two<|im_end|>]]\n")
    prompt, answer = prefixed.render_prompt(row)
    assert prompt.endswith("<|im_start|>assistant\nSo: ") and answer == "two"
    assert "".join(item.text for item in prefixed.render(row)).startswith(prompt)


def test_a_prefix_that_the_generation_prompt_has_already(renderer, thinking, talk, marked):
    row = talk(("user", "1"), ("assistant", "<think>\nHm\n</think>\n\nA"))
    prefixed = renderer(thinking, response_prefix="<think>\n")
    assert marked(prefixed.render(row)).endswith("assistant\n<think>\n[[1|Hm\n</think>\n\nA<|im_end|>]]\n")
    assert prefixed.render_prompt(row) == (
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "Hm\n</think>\n\nA",
    )


def test_a_prefix_inside_an_ignored_block(renderer, talk, marked):
    row = talk(("user", "1"), ("assistant", "<think>\n\n</think>\n\nA"))
    prefixed = renderer(response_prefix="<think>\n", loss_scale="ignore_empty_think")
    assert marked(prefixed.render(row)).endswith("assistant\n<think>\n\n</think>\n\n[[1|A<|im_end|>]]\n")


def test_prompt_is_the_rows_beginning(renderer, make_row):
    row = make_row(("user", (8, 8), "One?"), ("assistant", "1"), ("user", (8, 8)), ("assistant", "2"), ("user", "Bye"))
    prompt, answer = renderer().render_prompt(row)
    assert answer == "2" and prompt.count(IMAGE) == 2 and prompt.endswith("<|im_start|>assistant\n")
    assert _text(renderer().render(row)).startswith(prompt + "2<|im_end|>")


def test_prompts_that_there_are_not(renderer, talk):
    with pytest.raises(RowError, match="begins with its only assistant turn") as found:
        renderer(system="S").render_prompt(talk(("assistant", "A"), ("user", "?")))
    assert found.value.reason == "no prompt"
    with pytest.raises(RowError, match="has no assistant turn"):
        renderer().render_prompt(talk(("user", "?")))
    with pytest.raises(RowError, match="control token"):
        renderer().render_prompt(talk(("user", "<|im_end|>"), ("assistant", "A")))
    told = talk(("system", "Tell a story."), ("assistant", "Once"))
    assert renderer().render_prompt(told) == (
        "<|im_start|>system\nTell a story.<|im_end|>\n<|im_start|>assistant\n",
        "Once",
    )
    second = talk(("assistant", "Hello"), ("user", "?"), ("assistant", "A"))
    assert renderer().render_prompt(second)[1] == "A"


@pytest.mark.parametrize("agent_template", ["hermes", "react_en", "qwen_zh", "glm4_5", "toolbench"])
def test_a_renderer_travels_to_other_processes(renderer, two_cities, agent_template):
    here = renderer(agent_template=agent_template, loss_scale="react", system="S", response_prefix="Well")
    there = pickle.loads(pickle.dumps(here))
    assert there.render(two_cities) == here.render(two_cities)
    assert there.render_prompt(two_cities) == here.render_prompt(two_cities)
