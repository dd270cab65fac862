import numpy as np
import pytest
import torch
from transformers import AutoConfig, Qwen3VLModel

from harness.data.template.mrope import position_ids

IMAGE, VIDEO, TEXT = 9, 8, 1


@pytest.fixture(scope="module")
def model(checkpoint):
    with torch.device("meta"):
        return Qwen3VLModel(AutoConfig.from_pretrained(checkpoint))


def _layout(rng, num_images):
    """Random runs of text around images; text always separates two images, as their markers do."""
    ids, grids = [TEXT] * rng.integers(1, 9), []
    for _ in range(num_images):
        h, w = rng.integers(1, 8, 2)
        grids.append((1, 2 * h, 2 * w))
        ids += [IMAGE] * (h * w) + [TEXT] * rng.integers(1, 9)
    return np.array(ids, dtype=np.int32), np.array(grids, dtype=np.int32).reshape(-1, 3)


@pytest.mark.parametrize("num_images", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_equals_get_rope_index(model, num_images, seed):
    ids, grids = _layout(np.random.default_rng(seed), num_images)
    ours = position_ids(ids == IMAGE, grids, merge_size=2)
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    stock, _ = model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == IMAGE).int(),
        image_grid_thw=torch.from_numpy(grids.astype(np.int64)) if num_images else None,
        attention_mask=torch.ones_like(tokens),
    )
    assert ours.shape == (4, len(ids)) and ours.dtype == np.int64
    assert np.array_equal(ours[0], np.arange(len(ids)))
    assert np.array_equal(ours[1:], stock[:, 0].numpy())


def test_two_frames_of_a_video_count_as_an_image(model):
    ids = np.array([TEXT, TEXT, *[VIDEO] * 6, TEXT, TEXT, TEXT, *[VIDEO] * 6, TEXT], dtype=np.int32)
    ours = position_ids(ids == VIDEO, np.array([[1, 4, 6], [1, 4, 6]], dtype=np.int32), merge_size=2)
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    stock, _ = model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == VIDEO).int() * 2,
        video_grid_thw=torch.tensor([[2, 4, 6]]),
        attention_mask=torch.ones_like(tokens),
    )
    assert np.array_equal(ours[1:], stock[:, 0].numpy())


def test_text_goes_on_behind_the_longer_side():
    ids = np.array([TEXT, *[IMAGE] * 6, TEXT], dtype=np.int32)
    positions = position_ids(ids == IMAGE, np.array([[1, 4, 6]], dtype=np.int32), merge_size=2)
    assert positions[1].tolist() == [0, 1, 1, 1, 1, 1, 1, 4]
    assert positions[2].tolist() == [0, 1, 1, 1, 2, 2, 2, 4]
    assert positions[3].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
