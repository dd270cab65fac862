"""Parts of a micro-batch are what a collator would have made of their rows, and their losses add up."""

import dataclasses

import pytest
import torch

from harness.data.batch import Batch, Cached
from harness.data.collator import collate, collate_packed
from harness.data.cut import cut
from harness.model.forward import supervised_loss
from harness.model.vision import vision_index


@pytest.fixture
def samples(make_config, encoder):
    from harness import registry

    rows = registry.build("data", make_config().data).train
    return [encoder.load(sample) for index in range(7) for sample in encoder.encode(rows[index])]


def with_vision(batch, model):
    visual = model.model.visual
    if batch.grid_thw is not None:
        batch.vision = vision_index(batch.grid_thw, visual.num_grid_per_side, visual.spatial_merge_size)
    return batch


def tensors(batch):
    return {item.name: getattr(batch, item.name) for item in dataclasses.fields(Batch)}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


COUNTS = {"num_samples", "num_tokens", "num_pairs", "origins", "skipped", "step_supervised"}


def test_parts_are_the_batches_of_their_rows(samples, encoder, make_tuned):
    model = make_tuned().base
    visual = model.model.visual
    text, pad = encoder.text, encoder.pad_token_id
    packs = [samples[0:2], samples[2:3], samples[3:5], samples[5:7]]
    length = 40 * max(1, max(sum(len(s.sample.ids) for s in pack) for pack in packs) // 40 + 1)
    whole = with_vision(collate_packed(packs, text, pad, length), model)
    parts = cut(whole, 3, visual.num_grid_per_side, visual.spatial_merge_size)
    assert [part.input_ids.shape[0] for part in parts] == [1, 1, 2]
    for part, rows in zip(parts, (packs[:1], packs[1:2], packs[2:]), strict=True):
        made = tensors(with_vision(collate_packed(rows, text, pad, length), model))
        for name, value in tensors(part).items():
            assert name in COUNTS or equal(value, made[name]), name
    for name in ("num_samples", "num_tokens", "num_supervised", "num_visual", "num_pairs", "num_frame_pairs"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name


@pytest.mark.parametrize("left", [False, True])
def test_losses_of_padded_parts_add_up(samples, encoder, make_tuned, left):
    model = make_tuned("tuner.dropout=0").base.train()
    visual = model.model.visual
    whole = with_vision(collate(samples, encoder.text, encoder.pad_token_id, left), model)
    parts = cut(whole, 7, visual.num_grid_per_side, visual.spatial_merge_size)
    total = sum(supervised_loss(model, part) for part in parts)
    torch.testing.assert_close(total, supervised_loss(model, whole), rtol=1e-5, atol=1e-5)
    assert all(part.attention_mask.shape == (1, whole.input_ids.shape[1]) for part in parts)


def test_cached_features_go_with_their_tokens(samples, encoder, make_tuned):
    model = make_tuned().base
    visual = model.model.visual
    whole = collate(samples[:4], encoder.text, encoder.pad_token_id)
    tokens = [int(grid.prod()) // visual.spatial_merge_size**2 for grid in whole.grid_thw]
    number, patches = sum(tokens), whole.grid_thw.prod(1).tolist()
    # Images 1 and 2 were found, 0 and 3 are to be computed.
    hit = torch.cat([torch.full((count,), image in (1, 2)) for image, count in enumerate(tokens)])
    order = torch.where(hit, number - int(hit.sum()) + hit.cumsum(0) - 1, (~hit).cumsum(0) - 1)
    features = torch.arange(int(hit.sum())).float().view(-1, 1, 1).expand(-1, 2, 3)
    pixels = whole.pixel_values.split(patches)
    batch = dataclasses.replace(
        whole,
        pixel_values=torch.cat([pixels[0], pixels[3]]),
        grid_thw=whole.grid_thw[[0, 3]],
        cached=Cached(features, order, [("a", tokens[0]), ("d", tokens[3])], int(hit.sum())),
    )
    first, second = cut(batch, 2, visual.num_grid_per_side, visual.spatial_merge_size)
    assert torch.equal(first.pixel_values, pixels[0]) and torch.equal(second.pixel_values, pixels[3])
    assert first.cached.missed == [("a", tokens[0])] and second.cached.missed == [("d", tokens[3])]
    assert torch.equal(first.cached.features, features[: tokens[1]])
    assert torch.equal(second.cached.features, features[tokens[1] :])
    # What is computed lies in front of what was found.
    assert torch.equal(first.cached.order, torch.arange(tokens[0] + tokens[1]))
    assert torch.equal(second.cached.order, torch.cat([torch.arange(tokens[2]) + tokens[3], torch.arange(tokens[3])]))
    alone = cut(batch, 4, visual.num_grid_per_side, visual.spatial_merge_size)[1]
    assert alone.pixel_values is None and alone.cached.order is None and alone.cached.num_hit == tokens[1]
