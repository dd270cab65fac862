import pytest

from harness.data.config import ImageConfig
from harness.data.encoding import Encoder
from harness.data.image import ImageRef
from harness.data.image_budget import set_budget
from harness.errors import UserError


def test_budget_bounds_the_tokens_and_is_saved(image_processor, tokenizer, picture, tmp_path):
    set_budget(image_processor, ImageConfig(min_tokens=4, max_tokens=16))
    encoder = Encoder(tokenizer, image_processor)
    for size, tokens in {(500, 500): 16, (20, 20): 4, (96, 96): 9}.items():
        _, h, w = encoder.grid(ImageRef(picture(*size), "f:1"))
        assert h * w // 4 == tokens
    image_processor.save_pretrained(tmp_path)
    loaded = type(image_processor).from_pretrained(tmp_path)
    assert dict(loaded.size) == {"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 32 * 32}


def test_null_keeps_the_checkpoints_bounds(image_processor):
    before = dict(image_processor.size)
    set_budget(image_processor, ImageConfig())
    assert dict(image_processor.size) == before


def test_a_bound_that_crosses_the_checkpoints_is_refused(image_processor):
    with pytest.raises(UserError, match=r"data\.image\.min_tokens=65: .* at least 65 and at most 64 tokens"):
        set_budget(image_processor, ImageConfig(min_tokens=65))
    set_budget(image_processor, ImageConfig(min_tokens=8))
    with pytest.raises(UserError, match=r"data\.image\.max_tokens=7: .* at least 8 and at most 7 tokens"):
        set_budget(image_processor, ImageConfig(max_tokens=7))
