import dataclasses
import itertools

import numpy as np
import pytest
import torch

from harness.data.collator import collate, collate_packed, collate_prompts
from harness.data.row import Message, Row


def _rows(make_row):
    return [
        make_row(("user", (64, 64), "Hi"), ("assistant", "Yes."), origin="f:1"),
        make_row(("user", "Hello there"), ("assistant", "A"), ("user", "And?"), ("assistant", "B"), origin="f:2"),
        make_row(("user", (96, 64), (64, 96)), ("assistant", ""), origin="f:3"),
    ]


@pytest.fixture
def loaded(encoder, make_row):
    return [encoder.load(encoder.encode(row)[0]) for row in _rows(make_row)]


@pytest.mark.parametrize("left", [False, True])
def test_padded_batch_holds_each_sample(encoder, loaded, left):
    batch = collate(loaded, encoder.text, encoder.pad_token_id, left)
    width = batch.input_ids.shape[1]
    for i, item in enumerate(loaded):
        length = len(item.sample.ids)
        place = slice(width - length, width) if left else slice(0, length)
        mask = torch.zeros(width, dtype=torch.bool)
        mask[place] = True
        assert batch.input_ids[i, mask].tolist() == item.sample.ids.tolist()
        assert set(batch.input_ids[i, ~mask].tolist()) <= {encoder.pad_token_id}
        assert batch.attention_mask[i].bool().tolist() == mask.tolist()
        assert batch.position_ids[:, i, mask].tolist() == item.position_ids.tolist()
        assert batch.position_ids[:, i, ~mask].sum() == 0
    assert torch.equal(batch.pixel_values, torch.cat([loaded[0].pixel_values, loaded[2].pixel_values]))
    assert batch.grid_thw.tolist() == [[1, 4, 4], [1, 4, 6], [1, 6, 4]]
    assert (batch.num_samples, batch.num_visual) == (3, 4 + 6 + 6)
    assert batch.num_tokens == batch.attention_mask.sum() == sum(len(item.sample.ids) for item in loaded)
    assert batch.origins == ["f:1", "f:2", "f:3"]
    assert batch.loss_weights is None and batch.step_supervised == 0


def _layouts(encoder, loaded):
    text, pad = encoder.text, encoder.pad_token_id
    return [
        collate(loaded, text, pad),
        collate(loaded, text, pad, left=True),
        collate_packed([loaded], text, pad, None),
        collate_packed([loaded[:2], loaded[2:]], text, pad, 80),
    ]


def test_targets_are_the_tokens_behind_their_predictors_in_every_layout(encoder, loaded):
    for batch in _layouts(encoder, loaded):
        assert encoder.text.tokenizer.decode(batch.targets) == "Yes.<|im_end|>A<|im_end|>B<|im_end|><|im_end|>"
        assert batch.num_supervised == len(batch.targets) == len(batch.target_index)
        assert torch.equal(batch.input_ids.flatten()[batch.target_index + 1], batch.targets)
        for tensor in (batch.input_ids, batch.position_ids, batch.target_index, batch.targets, batch.visual_index):
            assert tensor.dtype == torch.int64
        assert batch.pixel_values.dtype == torch.float32 and batch.cu_seqlens.dtype == torch.int32


def test_visual_tokens_are_listed_in_the_order_of_the_pixels(encoder, loaded):
    for batch in _layouts(encoder, loaded):
        visual = encoder.text.is_visual(batch.input_ids.flatten().numpy())
        assert batch.visual_index.tolist() == np.flatnonzero(visual).tolist()
        assert len(batch.visual_index) == batch.num_visual == int(batch.grid_thw.prod(dim=1).sum()) // 4


def test_sequence_bounds_separate_samples_and_padding_in_every_layout(encoder, loaded):
    for batch in _layouts(encoder, loaded):
        bounds = batch.cu_seqlens.tolist()
        assert bounds[0] == 0 and bounds[-1] == batch.input_ids.numel() and bounds == sorted(set(bounds))
        pieces = [batch.input_ids.flatten()[low:high].tolist() for low, high in itertools.pairwise(bounds)]
        samples = [item.sample.ids.tolist() for item in loaded]
        assert [piece for piece in pieces if set(piece) != {encoder.pad_token_id}] == samples
        assert batch.max_seqlen == max(map(len, pieces))


def test_packed_rows_are_filled_and_counted(encoder, loaded):
    batch = collate_packed([loaded], encoder.text, encoder.pad_token_id, 128)
    assert batch.input_ids.shape == (1, 128) and batch.attention_mask is None
    assert (batch.num_samples, batch.num_tokens) == (3, sum(len(item.sample.ids) for item in loaded))
    # The text row begins at 0 in each sample, and in the filling.
    assert (batch.position_ids[0, 0] == 0).sum() == 4


def test_weights_are_there_only_where_they_differ_from_one(encoder, loaded):
    turns = (Message("user", ("Hi",)), Message("assistant", ("Yes",), 0.25))
    light = encoder.load(encoder.encode(Row(messages=turns, origin="f:9"))[0])
    batch = collate([loaded[1], light], encoder.text, encoder.pad_token_id)
    assert batch.loss_weights.dtype == torch.float32 and len(batch.loss_weights) == batch.num_supervised
    assert batch.loss_weights.tolist() == [1.0] * loaded[1].sample.num_supervised + [0.25] * light.sample.num_supervised


def test_text_only_batch_has_no_pixels(encoder, loaded):
    batch = collate([loaded[1]], encoder.text, 0)
    assert batch.pixel_values is None and batch.grid_thw is None and batch.num_visual == 0
    assert batch.visual_index.shape == (0,)


def test_a_batch_of_nothing_teaches_nothing(encoder):
    for batch in (collate([], encoder.text, 0), collate_packed([[]], encoder.text, 0, 16)):
        assert batch.num_samples == batch.num_supervised == batch.num_tokens == 0
        assert batch.targets.shape == (0,) and batch.input_ids.numel() >= 1


def test_left_padded_prompts_end_together(encoder, make_row):
    prompts = [encoder.encode_prompt(row) for row in _rows(make_row)]
    loaded = [encoder.load(prompt.sample) for prompt in prompts]
    batch = collate_prompts(prompts, loaded, [4, 7, 9], text=encoder.text, pad_token_id=encoder.pad_token_id)
    for i, prompt in enumerate(prompts):
        length = len(prompt.sample.ids)
        assert batch.input_ids[i, -length:].tolist() == prompt.sample.ids.tolist()
        assert batch.attention_mask[i].sum() == batch.attention_mask[i, -length:].sum() == length
        assert encoder.text.tokenizer.decode(batch.input_ids[i]).endswith("<|im_start|>assistant\n")
    assert torch.equal(batch.mm_token_type_ids == 1, batch.input_ids == encoder.text.image_token_id)
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 6], [1, 6, 4]]
    assert batch.pixel_values_videos is None and batch.video_grid_thw is None
    assert batch.references == ["Yes.", "B", ""]
    assert batch.rows == [4, 7, 9] and batch.origins == ["f:1", "f:2", "f:3"]
    assert batch.prompts[0] == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_each_supervised_token_knows_its_channel_in_every_layout(make_encoder, make_row):
    encoder, names = make_encoder(channels=["web", "books"]), ["books", None, "elsewhere"]
    rows = [dataclasses.replace(row, channel=name) for row, name in zip(_rows(make_row), names, strict=True)]
    loaded = [encoder.load(encoder.encode(row)[0]) for row in rows]
    supervised = [item.sample.num_supervised for item in loaded]
    for batch in _layouts(encoder, loaded):
        assert batch.channels.tolist() == [2] * supervised[0] + [0] * (supervised[1] + supervised[2])
    assert collate(loaded[1:], encoder.text, encoder.pad_token_id).channels is None
