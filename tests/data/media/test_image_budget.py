import pytest

from harness.data.config import ImageConfig, VideoConfig
from harness.data.media.image_budget import set_budget, set_video_budget, video_bounds
from harness.data.media.patches import PixelMaker
from harness.data.media.video import VideoShape
from harness.errors import UserError


def test_budget_bounds_the_tokens_and_is_saved(image_processor, tmp_path):
    set_budget(image_processor, ImageConfig(min_tokens=4, max_tokens=16))
    maker = PixelMaker(image_processor, (1, 1))
    for size, tokens in {(500, 500): 16, (20, 20): 4, (96, 96): 9}.items():
        _, h, w = maker.image_grid(*size)
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


def test_video_bounds_are_transformers_own_then_the_checkpoints_then_the_configs():
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    default = Qwen3VLVideoProcessor.size
    assert video_bounds({}, VideoConfig()) == (default["shortest_edge"], default["longest_edge"])
    settings = {"size": {"shortest_edge": 4096, "longest_edge": 25_165_824}}
    assert video_bounds(settings, VideoConfig()) == (4096, 25_165_824)
    assert video_bounds(settings, VideoConfig(max_tokens=100)) == (4096, 100 * 2 * 32 * 32)
    assert video_bounds(settings, VideoConfig(min_tokens=3, max_tokens=9)) == (3 * 2048, 9 * 2048)


@pytest.mark.parametrize("num_frames", [4, 10, 64])
@pytest.mark.parametrize("tokens", [64, 640])
def test_a_videos_tokens_stay_within_the_bounds(image_processor, num_frames, tokens):
    config = VideoConfig(min_tokens=tokens // 2, max_tokens=tokens)
    maker = PixelMaker(image_processor, video_bounds({}, config))
    for height, width in ((720, 1280), (40, 60), (300, 300)):
        t, h, w = maker.video_grid(VideoShape(num_frames, height, width, ()))
        assert t * h * w // 4 <= max(tokens, t)
        assert t * h * w // 4 >= tokens // 2


def test_what_is_in_force_is_written_into_the_settings():
    settings = {"size": {"shortest_edge": 4096, "longest_edge": 25_165_824}, "patch_size": 16, "merge_size": 2}
    config = VideoConfig(fps=1.5, min_frames=2, max_frames=99, max_tokens=50)
    assert set_video_budget(settings, config) == (4096, 50 * 2048)
    assert settings["size"] == {"shortest_edge": 4096, "longest_edge": 50 * 2048}
    assert (settings["fps"], settings["min_frames"], settings["max_frames"]) == (1.5, 2, 99)
    assert settings["cap_pixels_per_frame"] is False


def test_video_bounds_that_can_not_be_kept_are_refused():
    with pytest.raises(UserError, match=r"data\.video\.max_tokens=2: videos would have at least 64 and at most 2 tok"):
        video_bounds({}, VideoConfig(max_tokens=2))
    with pytest.raises(UserError, match=r"cap_pixels_per_frame=True: caps the pixels of each frame"):
        video_bounds({"cap_pixels_per_frame": True}, VideoConfig())
