import numpy as np
import pytest
import torch
from transformers import Qwen3VLProcessor

from harness.data.config import LossScale, Truncation
from harness.data.media.image import ImageRef
from harness.data.row import Media, Message, Row
from harness.data.template.encoder import Dropped
from harness.errors import UserError


class ImageTextProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor less its video half, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def _supervised(encoder, sample):
    return [encoder.text.tokenizer.decode(sample.ids[start:end]) for start, end in sample.spans]


def _one(encoder, row):
    samples = encoder.encode(row)
    assert len(samples) == 1
    return samples[0]


def test_answers_and_their_ends_are_supervised_and_nothing_else(encoder, make_row):
    row = make_row(
        ("system", "Be brief."),
        ("user", (64, 64), "assistant\nWhat is this?"),
        ("assistant", "A cat."),
        ("user", "And", (40, 90), "this? <|box_start|>(1,2)<|box_end|>"),
        ("assistant", "  Two\nassistant lines \n"),
        ("user", "Thanks"),
        ("assistant", ""),
    )
    sample = _one(encoder, row)
    assert _supervised(encoder, sample) == ["A cat.<|im_end|>", "  Two\nassistant lines \n<|im_end|>", "<|im_end|>"]
    assert sample.num_supervised == sum(end - start for start, end in sample.spans.tolist())
    assert sample.origin == row.origin and sample.weights.tolist() == [1, 1, 1] and not sample.piece_of_more


@pytest.mark.parametrize("answer", ["\nA", "\n\n A", " \n", "\n"])
def test_a_line_break_before_an_answer_is_the_answers_own(encoder, make_row, answer):
    row = make_row(("user", "Hi"), ("assistant", answer))
    sample = _one(encoder, row)
    assert _supervised(encoder, sample) == [answer + "<|im_end|>"]
    prompt = encoder.encode_prompt(row).sample.ids
    assert sample.ids[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("sizes", [[], [(64, 64)], [(33, 47)], [(300, 20), (31, 257)], [(1, 1), (1000, 777), (48, 48)]])
def test_equals_transformers_own_processor(encoder, image_processor, make_row, sizes):
    row = make_row(("user", "See", *sizes, "and say what it is."), ("assistant", "It is noise."), ("user", "Right"))
    sample = _one(encoder, row)
    tokenizer = encoder.text.tokenizer
    processor = ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)
    content = [{"type": "text", "text": "See"}, *[{"type": "image"}] * len(sizes)]
    content.append({"type": "text", "text": "and say what it is."})
    turns = [("user", content), ("assistant", "It is noise."), ("user", "Right")]
    text = processor.apply_chat_template([{"role": role, "content": content} for role, content in turns])
    stock = processor(text=[text], images=[image.load() for image in row.images] or None, return_tensors="pt")
    assert sample.ids.tolist() == stock["input_ids"][0].tolist()
    assert sample.num_visual == stock["mm_token_type_ids"].sum()
    pixels = encoder.load(sample).pixel_values
    if sizes:
        assert sample.grids.tolist() == stock["image_grid_thw"].tolist()
        torch.testing.assert_close(pixels, stock["pixel_values"], atol=1e-6, rtol=1e-6)
    else:
        assert pixels is None


def test_all_supervises_every_token_but_images_and_their_marks(make_encoder, make_row):
    encoder = make_encoder(loss_scale=LossScale.all)
    sample = _one(encoder, make_row(("user", "a", (64, 64), "b"), ("assistant", "c")))
    supervised = np.zeros(len(sample.ids), dtype=bool)
    for start, end in sample.spans:
        supervised[start:end] = True
    visual = encoder.text.is_visual(sample.ids)
    assert sample.num_visual == visual.sum() == 4
    visual |= np.isin(sample.ids, [encoder.text.start_token_id, encoder.text.end_token_id])
    assert not (supervised & visual).any() and (supervised | visual)[1:].all() and not supervised[0]


def test_prompt_is_the_rows_beginning(encoder, make_row):
    row = make_row(
        ("user", (64, 64), "One?"),
        ("assistant", "1"),
        ("user", (96, 64)),
        ("assistant", "2"),
        ("user", (64, 64), "Bye"),
    )
    prompt, sample = encoder.encode_prompt(row), _one(encoder, row)
    assert sample.ids[: len(prompt.sample.ids)].tolist() == prompt.sample.ids.tolist()
    assert len(prompt.sample.ids) == sample.spans[-1][0]
    assert prompt.reference == "2" and prompt.sample.media == row.images[:2] and not len(prompt.sample.spans)
    assert prompt.text.count("<|image_pad|>") == 2 and prompt.text.endswith("<|im_start|>assistant\n")


@pytest.fixture
def long_row(make_row):
    return make_row(("user", "a b c d e f", (64, 64), "g h i j", (64, 64)), ("assistant", "k l m n o p"))


def test_a_row_at_the_limit_stays_and_one_token_less_drops_it(make_encoder, encoder, long_row):
    length = len(_one(encoder, long_row).ids)
    assert len(_one(make_encoder(max_length=length), long_row).ids) == length
    assert make_encoder(max_length=length - 1).encode(long_row) == Dropped(long_row.origin, "over max_length")


def test_the_models_own_limit_is_the_default(make_encoder, processor, long_row):
    import copy

    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_max_length = 20
    assert make_encoder(tokenizer).encode(long_row) == Dropped(long_row.origin, "over max_length")


def test_a_row_over_the_limit_can_end_the_run(make_encoder, long_row):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: \d+ tokens, more than max_length=20; raise it"):
        make_encoder(max_length=20, truncation=Truncation["raise"]).encode(long_row)


@pytest.mark.parametrize("side", [Truncation.left, Truncation.right])
def test_truncation_never_cuts_an_image(make_encoder, encoder, long_row, side):
    whole = _one(encoder, long_row)
    fates = set()
    for max_length in range(1, len(whole.ids)):
        shorter = make_encoder(max_length=max_length, truncation=side)
        samples = shorter.encode(long_row)
        if isinstance(samples, Dropped):
            assert samples.reason == "no supervised token left by the cut"
            fates.add("dropped")
            continue
        (sample,) = samples
        fates.add(len(sample.media))
        assert len(sample.ids) <= max_length and sample.piece_of_more
        tail = side is Truncation.left
        expected = whole.ids[len(whole.ids) - len(sample.ids) :] if tail else whole.ids[: len(sample.ids)]
        assert sample.ids.tolist() == expected.tolist()
        assert sample.num_visual == 4 * len(sample.media) == encoder.text.is_visual(sample.ids).sum()
        assert sample.media == (
            long_row.images[2 - len(sample.media) :] if tail else long_row.images[: len(sample.media)]
        )
        assert encoder.text.tokenizer.decode(sample.ids).count("<|vision_start|>") == len(sample.media)
        loaded = shorter.load(sample)
        assert loaded.position_ids.shape == (4, len(sample.ids))
        assert sample.num_supervised > 0 and sample.spans[0][0] >= 1
    assert fates == ({"dropped", 0, 1, 2} if side is Truncation.left else {"dropped", 2})


def test_split_makes_several_samples_of_a_row(make_encoder, encoder, long_row):
    whole = _one(encoder, long_row)
    shorter = make_encoder(max_length=16, truncation=Truncation.split, loss_scale=LossScale.all)
    samples = shorter.encode(long_row)
    assert len(samples) > 2 and all(len(sample.ids) <= 16 and sample.piece_of_more for sample in samples)
    assert np.concatenate([sample.ids for sample in samples]).tolist() == whole.ids.tolist()
    assert tuple(image for sample in samples for image in sample.media) == long_row.images
    assert make_encoder(max_length=5, truncation=Truncation.split).encode(long_row) == Dropped(
        long_row.origin, "an image or video alone over max_length"
    )


def test_a_row_that_teaches_nothing_is_dropped(encoder):
    row = Row(messages=(Message("user", ("Hi",)), Message("assistant", ("Yes",), 0.0)), origin="f:1")
    assert encoder.encode(row) == Dropped("f:1", "no supervised token")


def test_weights_follow_their_turns(encoder):
    turns = (Message("user", ("Hi",)), Message("assistant", ("Yes",), 0.5), Message("user", ("So",)))
    row = Row(messages=(*turns, Message("assistant", ("No",))), origin="f:1")
    sample = _one(encoder, row)
    assert _supervised(encoder, sample) == ["Yes<|im_end|>", "No<|im_end|>"]
    assert sample.weights.tolist() == [0.5, 1.0]


def test_tokenizers_that_can_not_be_used(make_encoder, processor, monkeypatch):
    import copy

    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="has no padding token"):
        make_encoder(tokenizer)
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != "<|image_pad|>"}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: vocabulary)
    with pytest.raises(UserError, match=r"no token <\|image_pad\|>"):
        make_encoder(tokenizer)


def test_a_row_that_lost_its_image_under_the_run(encoder, make_row):
    row = make_row(("user", (64, 64)), ("assistant", "Yes"))
    found = encoder.text.encode_many([row])[0]
    grids = encoder.grids(found.media, found.pixel_bounds)
    without = Row(messages=(Message("user", ("x",)), row.messages[1]), origin=row.origin)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the row changed while the run was using it"):
        encoder.sample(found, grids, without, None, row.origin)


def test_an_image_that_changes_under_the_run(encoder, picture, tmp_path):
    path = tmp_path / "p.png"
    picture(64, 64).save(path)
    row = Row(
        messages=(Message("user", (Media.image,)), Message("assistant", ("Yes",))),
        images=(ImageRef(str(path), "f:2"),),
        origin="f:2",
    )
    sample = _one(encoder, row)
    picture(96, 64).save(path)
    # Its tokens are fixed by then: it is resized to them, or refused, but never gives other numbers of patches.
    with pytest.raises(UserError, match=r"f:2: .*changed"):
        encoder.load(sample)
