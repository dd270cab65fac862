import pytest

from harness.data.row import Media, Message, Row
from harness.data.row_error import RowError
from harness.data.template.control import ControlTokens


@pytest.fixture
def control(_tokenizer):
    return ControlTokens(_tokenizer)


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|endoftext|>",
    ],
)
def test_markers_are_found(control, token):
    assert control.find(f"a {token}<|im_end|> b") == token


@pytest.mark.parametrize(
    "text",
    [
        "<|box_start|>(1,2)<|box_end|>",
        "<|object_ref_start|>",
        "<|im_ end|>",
        "<|",
        "<think></think>",
        "",
        "<tool_call>",
    ],
)
def test_grounding_marks_and_tags_are_content(control, text):
    assert control.find(text) is None


def test_a_template_that_shows_no_video_still_may_not_be_fooled(tokenizer):
    tokenizer.chat_template = "<|im_start|>"
    assert ControlTokens(tokenizer).find("<|video_pad|>") == "<|video_pad|>"


def test_a_tokenizer_without_special_tokens_has_none(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", {})
    assert ControlTokens(tokenizer).find("<|im_end|>") is None


def test_the_message_is_named_and_a_token_in_two_pieces_is_found(control):
    parts = ("a<|im_", "end|>", Media.image)
    row = Row(messages=(Message("user", ("Hi",)), Message("user", parts)), origin="f:3")
    with pytest.raises(
        RowError, match=r"f:3: message 2 contains the control token '<\|im_end\|>'.* space it out"
    ) as found:
        control.check(row)
    assert found.value.reason == "control token"
