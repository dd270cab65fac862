import torch

from harness.data.collator import collate, collate_prompts


def test_to_moves_every_tensor_and_keeps_the_rest(encoder, make_row):
    row = make_row(("user", (64, 64), "Hi"), ("assistant", "Yes."))
    prompt = encoder.encode_prompt(row)
    batch = collate([encoder.load(encoder.encode(row)[0])], encoder.text, 0)
    batch.step_supervised = 7
    prompts = collate_prompts([prompt], [encoder.load(prompt.sample)], [0], text=encoder.text, pad_token_id=0)
    for original in (batch, prompts):
        moved = original.to("meta")
        for name in type(original).__slots__:
            before, after = getattr(original, name), getattr(moved, name)
            if isinstance(before, torch.Tensor):
                assert after.device.type == "meta" and after.shape == before.shape and after.dtype == before.dtype
            else:
                assert after == before
    assert batch.input_ids.device.type == "cpu"
