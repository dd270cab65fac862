"""What of a generated answer is compared with the reference."""

from types import SimpleNamespace

import pytest
import torch

from harness.model.processor import load_tokenizer
from harness.trainer.evaluate import generate


@pytest.mark.parametrize("new", [["<cat>"], []], ids=["new token", "as it comes"])
def test_answers_keep_special_tokens_that_are_content(make_config, new):
    """A reference holds them too; what structures the conversation is left out."""
    quoted = ",".join(f'"{token}"' for token in new)
    model = make_config(f"model.new_special_tokens=[{quoted}]", f"model.train_new_tokens={'true' if new else 'false'}")
    tokenizer, _ = load_tokenizer(model.model)
    answer = f"see {''.join(new)}<|box_start|>(1,2)<|box_end|>"
    written = torch.tensor([tokenizer(f"ab{answer}<|im_end|><|endoftext|>")["input_ids"]])
    batch = SimpleNamespace(
        input_ids=written[:, :2],
        attention_mask=None,
        mm_token_type_ids=None,
        **dict.fromkeys(("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")),
    )
    told = generate(SimpleNamespace(generate=lambda **_: written), tokenizer, batch, max_new_tokens=9)
    assert len(told) == 1 and told[0] == tokenizer.decode(written[0, 2:-2])
    assert told[0].endswith(answer[-28:]) and all(token in told[0] for token in new)
