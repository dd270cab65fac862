import numpy as np
import pytest
import torch
from transformers import Qwen3VLProcessor

from harness.data.config import Truncation
from harness.data.encoding import Dropped, Encoder
from harness.data.image import ImageRef
from harness.data.row import Message, Row
from harness.errors import UserError

USER_IMAGES_ONLY = """
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type == 'image' %}{% if message.role == 'user' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}
{%- else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
"""Drops images of other turns in silence, as Qwen3-VL's own template does."""

THINKING = """
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- set answer = message.content.split('</think>')[-1].lstrip('\n') %}
{%- if message.role != 'assistant' %}{{ message.content }}
{%- elif loop.last %}{{ '<think>\n' + message.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}
{{- '\n</think>\n\n' + answer }}
{%- else %}{{ answer }}{% endif %}{{ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
"""Drops the reasoning of all answers but the last, and opens one in the generation prompt, as Qwen's Thinking does."""


class ImageTextProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor less its video half, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def _supervised(tokenizer, sample):
    return [tokenizer.decode(sample.ids[start:end]) for start, end in sample.spans]


def test_answers_and_their_ends_are_supervised_and_nothing_else(encoder, tokenizer, make_row):
    row = make_row(
        ("system", "Be brief."),
        ("user", (64, 64), "assistant\nWhat is this?"),
        ("assistant", "A cat."),
        ("user", "And", (40, 90), "this? <|box_start|>(1,2)<|box_end|>"),
        ("assistant", "  Two\nassistant lines \n"),
        ("user", "Thanks"),
        ("assistant", ""),
    )
    sample = encoder.encode(row)
    assert _supervised(tokenizer, sample) == ["A cat.<|im_end|>", "  Two\nassistant lines \n<|im_end|>", "<|im_end|>"]
    assert sample.num_supervised == sum(end - start for start, end in sample.spans.tolist())
    assert sample.origin == row.origin and not sample.truncated


@pytest.mark.parametrize("answer", ["\nA", "\n\n A", " \n", "\n"])
def test_a_line_break_before_an_answer_is_the_answers_own(encoder, tokenizer, make_row, answer):
    row = make_row(("user", "Hi"), ("assistant", answer))
    sample = encoder.encode(row)
    assert _supervised(tokenizer, sample) == [answer + "<|im_end|>"]
    prompt = encoder.encode_prompt(row).sample.ids
    assert sample.ids[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("sizes", [[], [(64, 64)], [(33, 47)], [(300, 20), (31, 257)], [(1, 1), (1000, 777), (48, 48)]])
def test_equals_transformers_own_processor(encoder, tokenizer, image_processor, make_row, sizes):
    row = make_row(("user", "See", *sizes, "and say what it is."), ("assistant", "It is noise."), ("user", "Right"))
    sample = encoder.encode(row)
    processor = ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)
    content = [{"type": "text", "text": "See"}, *[{"type": "image"}] * len(sizes)]
    content.append({"type": "text", "text": "and say what it is."})
    turns = [("user", content), ("assistant", "It is noise."), ("user", "Right")]
    text = processor.apply_chat_template([{"role": role, "content": content} for role, content in turns])
    stock = processor(text=[text], images=[image.load() for image in row.images] or None, return_tensors="pt")
    assert sample.ids.tolist() == stock["input_ids"][0].tolist()
    assert sample.num_visual == stock["mm_token_type_ids"].sum()
    if sizes:
        assert sample.grids.tolist() == stock["image_grid_thw"].tolist()
        assert torch.equal(encoder.pixels(sample), stock["pixel_values"])
    else:
        assert encoder.pixels(sample) is None


def test_header_alone_predicts_the_grid_at_any_size(encoder, picture):
    rng = np.random.default_rng(0)
    for width, height in [*rng.integers(1, 400, (60, 2)).tolist(), [200, 1], [1, 200], [47, 48], [80, 16]]:
        if max(width, height) > 200 * min(width, height):
            continue
        image = ImageRef(picture(width, height), "f:1")
        out = encoder.image_processor(images=[image.load()], return_tensors="pt")
        assert encoder.grid(image) == tuple(out["image_grid_thw"][0].tolist())


def test_prompt_is_the_rows_beginning(encoder, tokenizer, make_row):
    row = make_row(
        ("user", (64, 64), "One?"),
        ("assistant", "1"),
        ("user", (96, 64)),
        ("assistant", "2"),
        ("user", (64, 64), "Bye"),
    )
    prompt, sample = encoder.encode_prompt(row), encoder.encode(row)
    assert sample.ids[: len(prompt.sample.ids)].tolist() == prompt.sample.ids.tolist()
    assert len(prompt.sample.ids) == sample.spans[-1][0]
    assert prompt.reference == "2" and prompt.sample.images == row.images[:2] and not len(prompt.sample.spans)
    assert prompt.text.count("<|image_pad|>") == 2 and prompt.text.endswith("<|im_start|>assistant\n")


def test_templates_that_rewrite_answers(tokenizer, image_processor, make_row):
    tokenizer.chat_template = THINKING
    encoder = Encoder(tokenizer, image_processor)
    row = make_row(
        ("user", "Hi"),
        ("assistant", "<think>\nHm\n</think>\n\nOne"),
        ("user", "And?"),
        ("assistant", "<think>\nEh\n</think>\n\nTwo"),
    )
    spans = _supervised(tokenizer, encoder.encode(row))
    assert spans == ["One<|im_end|>", "<think>\nEh\n</think>\n\nTwo<|im_end|>"]
    assert encoder.encode_prompt(row).text.endswith("<|im_start|>assistant\n<think>\n")


@pytest.fixture
def long_row(make_row):
    return make_row(("user", "a b c d e f", (64, 64), "g h i j", (64, 64)), ("assistant", "k l m n o p"))


def test_a_row_at_the_limit_stays_and_one_token_less_drops_it(tokenizer, image_processor, long_row):
    length = len(Encoder(tokenizer, image_processor).encode(long_row).ids)
    at_limit = Encoder(tokenizer, image_processor, max_length=length).encode(long_row)
    assert len(at_limit.ids) == length and not at_limit.truncated
    dropped = Encoder(tokenizer, image_processor, max_length=length - 1).encode(long_row)
    assert dropped == Dropped(long_row.origin, "over max_length")
    tokenizer.model_max_length = length - 1
    assert Encoder(tokenizer, image_processor).encode(long_row) == dropped


@pytest.mark.parametrize("side", [Truncation.left, Truncation.right])
def test_truncation_never_cuts_an_image(tokenizer, image_processor, long_row, side):
    whole = Encoder(tokenizer, image_processor).encode(long_row)
    vision = {tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "image_pad", "vision_end")}
    blocks = [token for token in whole.ids.tolist() if token in vision]
    kept = 0
    for max_length in range(1, len(whole.ids)):
        sample = Encoder(tokenizer, image_processor, max_length=max_length, truncation=side).encode(long_row)
        if isinstance(sample, Dropped):
            assert sample.reason in ("with images alone over max_length", "with no supervised token left by the cut")
            assert (sample.reason == "with images alone over max_length") == (max_length < len(blocks))
            continue
        kept += 1
        assert len(sample.ids) == max_length and sample.truncated
        assert [token for token in sample.ids.tolist() if token in vision] == blocks
        assert sample.num_visual == whole.num_visual and sample.images == whole.images
        answer = whole.ids[slice(*whole.spans[0])].tolist()
        left = sample.ids[slice(*sample.spans[0])].tolist()
        # Right truncation eats the answer from its end; left truncation reaches it last and keeps its end.
        assert left == (answer[: len(left)] if side is Truncation.right else answer[len(answer) - len(left) :])
        encoder = Encoder(tokenizer, image_processor)
        assert encoder.load(sample).position_ids.shape == (4, max_length)
    assert kept > 5


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|endoftext|>"])
def test_control_tokens_in_text_are_refused(encoder, make_row, token):
    for row in (
        make_row(("user", f"Hi {token}"), ("assistant", "Yes")),
        make_row(("user", "Hi"), ("assistant", f"{token}Yes")),
    ):
        with pytest.raises(UserError, match=r"rows\.jsonl:1: message \d contains the control token '<\|\w+\|>'"):
            encoder.encode(row)


def test_images_that_the_template_does_not_show(tokenizer, image_processor, make_row):
    tokenizer.chat_template = USER_IMAGES_ONLY
    row = make_row(("system", (64, 64)), ("user", (64, 64)), ("assistant", "Yes"))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the chat template shows 1 of 2 images"):
        Encoder(tokenizer, image_processor).encode(row)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            r"rows\.jsonl:1: the chat template refuses the row .roles must",
        ),
        ("<|im_start|>assistant\n{{ messages[1].content }}", r"does not end an assistant turn with <\|im_end\|>"),
        ("{{ messages[1].content }}<|im_end|>", r"the chat template renders 0 of 1 assistant turns"),
    ],
)
def test_templates_that_can_not_be_used(tokenizer, image_processor, make_row, template, message):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        Encoder(tokenizer, image_processor).encode(make_row(("user", "Hi"), ("assistant", "Yes")))


def test_tokenizers_that_can_not_be_used(tokenizer, image_processor):
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="has no padding token"):
        Encoder(tokenizer, image_processor)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        Encoder(tokenizer, image_processor)


def test_a_tokenizer_of_another_family(tokenizer, image_processor, monkeypatch):
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != "<|image_pad|>"}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: vocabulary)
    with pytest.raises(UserError, match=r"no token <\|image_pad\|>"):
        Encoder(tokenizer, image_processor)


def test_a_prompt_needs_a_turn_before_the_answer(encoder, make_row):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: begins with its only assistant turn"):
        encoder.encode_prompt(make_row(("assistant", "Yes")))


def test_an_image_that_changes_under_the_run(encoder, picture, tmp_path):
    path = tmp_path / "p.png"
    picture(64, 64).save(path)
    image = ImageRef(str(path), "f:2")
    row = Row((Message("user", (None,)), Message("assistant", ("Yes",))), (image,), "f:2")
    sample = encoder.encode(row)
    picture(96, 64).save(path)
    with pytest.raises(UserError, match="f:2: an image changed its size"):
        encoder.pixels(sample)
