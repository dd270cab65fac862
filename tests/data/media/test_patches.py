import pickle
import types

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from harness.data.media.patches import PixelMaker
from harness.data.media.video import VideoShape
from harness.errors import UserError

VIDEO_SIZE = (4096, 64 * 2048)


@pytest.fixture
def maker(image_processor):
    return PixelMaker(image_processor, VIDEO_SIZE)


@pytest.mark.parametrize("size", [(64, 96), (31, 57), (500, 300), (1, 150), (20, 20), (333, 256)])
def test_images_equal_transformers_processor(maker, image_processor, picture, size):
    image = picture(*size)
    out = image_processor(images=[image], return_tensors="np")
    grid = maker.image_grid(image.height, image.width)
    assert grid == tuple(out["image_grid_thw"][0])
    patches = maker.image_patches(image, grid)
    assert patches.dtype == np.float32 and patches.flags.writeable
    np.testing.assert_allclose(patches, out["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("patch_size", [14, 16])
def test_other_settings_of_the_processor_count(image_processor, picture, patch_size):
    image_processor.patch_size, image_processor.temporal_patch_size = patch_size, 3
    image_processor.image_mean, image_processor.image_std = [0.48, 0.45, 0.4], [0.26, 0.26, 0.27]
    image = picture(100, 80)
    out = image_processor(images=[image], return_tensors="np")
    maker = pickle.loads(pickle.dumps(PixelMaker(image_processor, VIDEO_SIZE)))
    patches = maker.image_patches(image, maker.image_grid(80, 100))
    np.testing.assert_allclose(patches, out["pixel_values"], atol=1e-6, rtol=0)


def test_a_rows_bounds_take_the_place_of_the_checkpoints(maker):
    tokens = lambda *bounds: int(np.prod(maker.image_grid(300, 300, *bounds))) // 4  # noqa: E731
    assert tokens() == 64
    assert tokens(None, 9 * 1024) == 9
    assert tokens(100 * 1024, None) == 100
    assert tokens(None, 512) == 1  # below the checkpoint's lower bound


def test_only_what_a_bound_changes_counts_as_resized(maker):
    assert maker.resized(300, 300) == "shrunk"
    assert maker.resized(10, 10) == "enlarged"
    assert maker.resized(100, 130) is None  # rounded to 96 x 128
    assert maker.resized(100, 130, None, 4096) == "shrunk"
    assert maker.resized(100, 130, 20_000) == "enlarged"


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
def test_videos_equal_transformers_patchify(maker, num_frames):
    frames = list(np.random.default_rng(0).integers(0, 256, (num_frames, 64, 96, 3), dtype=np.uint8))
    grid = (-(-num_frames // 2), 4, 6)
    patches = maker.video_patches(frames, grid)
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float() / 255 * 2 - 1
    wanted, *sides = Qwen3VLVideoProcessor.patchify(types.SimpleNamespace(), video, 16, 2, 2)
    assert grid == tuple(sides)
    np.testing.assert_allclose(patches, wanted[0].numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_frames", [2, 3, 5, 24, 41])
@pytest.mark.parametrize(("height", "width"), [(720, 1280), (40, 60), (20, 90), (3, 500)])
def test_video_grids_have_transformers_number_of_patches(maker, num_frames, height, width):
    processor = types.SimpleNamespace(
        size={"shortest_edge": VIDEO_SIZE[0], "longest_edge": VIDEO_SIZE[1]},
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        cap_pixels_per_frame=False,
    )
    wanted = Qwen3VLVideoProcessor.get_num_of_video_patches(processor, num_frames, height, width)
    grid = maker.video_grid(VideoShape(num_frames, height, width, ()))
    assert np.prod(grid) == wanted


def test_frames_are_resized_as_pillow_does_it(maker):
    frame = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    grid = (1, 4, 6)
    small = np.asarray(Image.fromarray(frame).resize((96, 64), Image.Resampling.BICUBIC))
    assert maker.pixel_size(grid) == (64, 96)
    assert np.array_equal(maker.video_patches([frame, frame], grid), maker.video_patches([small], grid))
    assert np.array_equal(maker.video_patches([frame], grid), maker.image_patches(Image.fromarray(frame), grid))


def test_frames_are_within_two_levels_of_torchs_filter(maker):
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    patches = maker.video_patches([frame], (1, 22, 28))
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(tensor, size=(352, 448), mode="bicubic", antialias=True)
    video = (resized.float() / 255 * 2 - 1)[:, None]
    wanted, *_ = Qwen3VLVideoProcessor.patchify(types.SimpleNamespace(), video, 16, 2, 2)
    difference = (wanted[0] - torch.from_numpy(patches)).abs() * 255 / 2
    assert difference.max() < 2.01 and (difference > 0.5).float().mean() < 0.02


def test_a_processor_that_does_not_resize_is_refused(image_processor):
    image_processor.do_resize = False
    with pytest.raises(UserError, match=r"model\.path=.*must have do_resize and do_convert_rgb on"):
        PixelMaker(image_processor, VIDEO_SIZE)
