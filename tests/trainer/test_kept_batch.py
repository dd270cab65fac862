import dataclasses

import torch

from harness.model.forward import token_losses
from harness.model.vision import vision_index
from harness.trainer.kept_batch import describe, read, write


def assert_same(left, right):
    assert type(left) is type(right)
    for part in dataclasses.fields(left):
        one, other = getattr(left, part.name), getattr(right, part.name)
        if dataclasses.is_dataclass(one):
            assert_same(one, other)
        elif isinstance(one, torch.Tensor):
            assert torch.equal(one, other) and one.dtype == other.dtype, part.name
        else:
            assert one == other, part.name


def test_what_is_read_is_what_was_trained_on(tmp_path, make_batch, make_tuned):
    batches, base = [make_batch(0, 1), make_batch(2)], make_tuned().base
    visual = base.model.visual
    batches[0].vision = vision_index(batches[0].grid_thw, visual.num_grid_per_side, visual.spatial_merge_size)
    path = tmp_path / "new" / "step_7_rank_0.safetensors"
    write(path, 7, batches)
    kept = read(path)
    for batch, again in zip(batches, kept, strict=True):
        assert_same(batch, again)
        assert token_losses(base, batch)[0] == token_losses(base, again)[0]


def test_a_reader_is_shown_rows_and_what_is_not_finite(tmp_path, make_batch):
    batch = make_batch(0, 1)
    batch.pixel_values[0, :3] = torch.nan
    write(tmp_path / "file", 7, [batch])
    text = describe(tmp_path / "file")
    assert text.startswith(
        f"step 7\nmicro-batch 0: {batch.num_tokens} tokens, 4 supervised\n  row {batch.origins[0]}\n"
    )
    shape = tuple(batch.pixel_values.shape)
    assert f"  pixel_values: {shape} float32, -1 to " in text and ", 3 not finite\n" in text
    assert "  visual_index: (8,) int64, " in text
