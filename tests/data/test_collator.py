import torch

from harness.data.collator import collate, collate_prompts


def _rows(make_row):
    return [
        make_row(("user", (64, 64), "Hi"), ("assistant", "Yes."), origin="f:1"),
        make_row(("user", "Hello there"), ("assistant", "A"), ("user", "And?"), ("assistant", "B"), origin="f:2"),
        make_row(("user", (96, 64), (64, 96)), ("assistant", ""), origin="f:3"),
    ]


def test_right_padded_batch_holds_each_sample(encoder, make_row):
    loaded = [encoder.load(encoder.encode(row)) for row in _rows(make_row)]
    batch = collate(loaded, pad_token_id=encoder.pad_token_id)
    for i, item in enumerate(loaded):
        length = len(item.sample.ids)
        assert batch.input_ids[i, :length].tolist() == item.sample.ids.tolist()
        assert set(batch.input_ids[i, length:].tolist()) <= {encoder.pad_token_id}
        assert batch.attention_mask[i].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
        assert batch.position_ids[:, i, :length].tolist() == item.position_ids.tolist()
        assert batch.position_ids[:, i, length:].sum() == 0
    assert torch.equal(batch.pixel_values, torch.cat([loaded[0].pixel_values, loaded[2].pixel_values]))
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 6], [1, 6, 4]]
    assert (batch.num_samples, batch.num_visual) == (3, 4 + 6 + 6)
    assert batch.num_tokens == batch.attention_mask.sum() == sum(len(item.sample.ids) for item in loaded)
    assert batch.origins == ["f:1", "f:2", "f:3"]
    assert batch.loss_weights is None and batch.step_supervised == 0


def test_targets_are_the_tokens_behind_their_predictors(encoder, tokenizer, make_row):
    loaded = [encoder.load(encoder.encode(row)) for row in _rows(make_row)]
    batch = collate(loaded, pad_token_id=encoder.pad_token_id)
    assert tokenizer.decode(batch.targets) == "Yes.<|im_end|>A<|im_end|>B<|im_end|><|im_end|>"
    assert batch.num_supervised == len(batch.targets) == len(batch.target_index)
    assert torch.equal(batch.input_ids.flatten()[batch.target_index + 1], batch.targets)
    for tensor in (batch.input_ids, batch.attention_mask, batch.position_ids, batch.target_index, batch.targets):
        assert tensor.dtype == torch.int64
    assert batch.pixel_values.dtype == torch.float32


def test_text_only_batch_has_no_pixels(encoder, make_row):
    batch = collate([encoder.load(encoder.encode(_rows(make_row)[1]))], pad_token_id=0)
    assert batch.pixel_values is None and batch.image_grid_thw is None and batch.num_visual == 0


def test_left_padded_prompts_end_together(encoder, tokenizer, make_row):
    prompts = [encoder.encode_prompt(row) for row in _rows(make_row)]
    loaded = [encoder.load(prompt.sample) for prompt in prompts]
    pad, image = encoder.pad_token_id, encoder.image_token_id
    batch = collate_prompts(prompts, loaded, [4, 7, 9], pad_token_id=pad, image_token_id=image)
    for i, prompt in enumerate(prompts):
        length = len(prompt.sample.ids)
        assert batch.input_ids[i, -length:].tolist() == prompt.sample.ids.tolist()
        assert batch.attention_mask[i].sum() == batch.attention_mask[i, -length:].sum() == length
        assert tokenizer.decode(batch.input_ids[i]).endswith("<|im_start|>assistant\n")
    assert torch.equal(batch.mm_token_type_ids == 1, batch.input_ids == encoder.image_token_id)
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 6], [1, 6, 4]]
    assert batch.references == ["Yes.", "B", ""]
    assert batch.rows == [4, 7, 9] and batch.origins == ["f:1", "f:2", "f:3"]
    assert batch.prompts[0] == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
