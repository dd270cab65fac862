"""Batches shared out over ranks; that ranks train alike: tests/memory/strategy/test_ulysses.py."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from harness import registry
from harness.data.features.lookup import Found
from harness.data.layout import Kind, Layout
from harness.data.share import deal

LAYOUTS = {
    "padded": Layout(Kind.padded),
    "left": Layout(Kind.padded, left=True),
    "packed": Layout(Kind.packed),
    "filled": Layout(Kind.packed, 301),
    "joined": Layout(Kind.joined),
}


@pytest.fixture(scope="module")
def loaded(make_config, encoder):
    rows = registry.build("data", make_config().data).train
    return [encoder.load(sample) for index in (0, 1, 2, 3, 4) for sample in encoder.encode(rows[index])]


def shares(layout, loaded, encoder, size):
    units = [loaded[:2], loaded[2:]]
    if size == 1:
        return [layout.collate(units, encoder)]
    return [dataclasses.replace(layout, shared=(rank, size)).collate(units, encoder) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_slices_put_together_are_the_batch(loaded, encoder, kind, size):
    parts = shares(LAYOUTS[kind], loaded, encoder, size)
    (whole,) = shares(LAYOUTS[kind], loaded, encoder, 1)
    lengths = {part.input_ids.shape[1] for part in parts}
    assert len(lengths) == 1, "slices are equally long"
    length, rows = lengths.pop(), parts[0].share.rows
    ids, positions = (torch.cat([getattr(p, key) for p in parts], -1) for key in ("input_ids", "position_ids"))
    # Rows may be a few tokens longer than without ranks.
    extra = ids.numel() // rows - whole.input_ids.shape[1]
    assert 0 <= extra < size
    unpadded = slice(extra, None) if kind == "left" else slice(0, whole.input_ids.shape[1])
    assert torch.equal(ids.view(rows, -1)[:, unpadded], whole.input_ids)
    assert torch.equal(positions.view(4, rows, -1)[1:, :, unpadded], whole.position_ids[1:])
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    predictors = torch.cat([part.target_index + rank * length for rank, part in enumerate(parts)])
    if kind != "left":
        row, column = predictors // (length * size // rows), predictors % (length * size // rows)
        assert torch.equal(row * whole.input_ids.shape[1] + column, whole.target_index)
    for rank, part in enumerate(parts):
        assert (part.num_tokens, part.num_supervised) == (whole.num_tokens, whole.num_supervised)
        assert int(part.cu_seqlens[-1]) == length * size and part.share.rank == rank
        assert torch.equal(part.share.positions.flatten(), positions[0].flatten())


def test_a_target_behind_a_border_is_predicted_in_front_of_it(loaded, encoder):
    batch = loaded[:1]
    length = len(batch[0].sample.ids)
    (begin, stop), *_ = batch[0].sample.spans.tolist()
    assert begin <= length // 2 < stop or stop - begin > 1
    for size in range(2, length):
        parts = [Layout(Kind.joined, shared=(rank, size)).collate([batch], encoder) for rank in range(size)]
        cut = parts[0].input_ids.shape[1]
        first = begin // cut
        if begin % cut == 0:
            assert int(parts[first - 1].target_index[-1]) == cut - 1
            assert int(parts[first - 1].targets[-1]) == int(batch[0].sample.ids[begin])
            return
    pytest.fail("no size cuts there")


@pytest.mark.parametrize("size", [2, 3])
def test_images_and_features_reach_their_tokens(loaded, encoder, size):
    """Every rank's images carry the number of their tokens, which the exchange is to bring to the slices."""
    parts = shares(LAYOUTS["packed"], loaded, encoder, size)
    (whole,) = shares(LAYOUTS["packed"], loaded, encoder, 1)
    numbers = iter(range(whole.num_visual))
    tokens = [[next(numbers) for _ in range(int(grid.prod()) // 4)] for grid in whole.grid_thw]
    owners = deal(whole.grid_thw.prod(1).numpy(), size)
    own = [[n for owner, image in zip(owners, tokens, strict=True) if owner == r for n in image] for r in range(size)]
    sent = []
    for rank, part in enumerate(parts):
        assert sum(part.share.sends) == len(own[rank]) == part.share.num_fresh
        bounds = np.cumsum([0, *part.share.sends])
        sent.append([own[rank][low:high] for low, high in pairwise(bounds)])
    for rank, part in enumerate(parts):
        received = [n for sender in sent for n in sender[rank]]
        assert [len(sender[rank]) for sender in sent] == part.share.receives
        ordered = torch.tensor(received)[part.share.order].tolist()
        offset = rank * part.input_ids.shape[1]
        length = part.input_ids.shape[1] * size // part.share.rows
        places = part.visual_index + offset
        flat = places // length * whole.input_ids.shape[1] + places % length
        assert torch.equal(flat, whole.visual_index[ordered])
    pixels = [part.pixel_values for part in parts if part.pixel_values is not None]
    assert sum(map(len, pixels)) == len(whole.pixel_values), "no image twice"
    assert all(part.vision is not None for part in parts if part.pixel_values is not None)
    assert sum(part.num_frame_pairs for part in parts) == whole.num_frame_pairs


def test_who_has_an_image_does_not_depend_on_a_cache(loaded, encoder):
    seen = []
    for number, item in enumerate(loaded):
        tokens = (item.sample.grids.prod(axis=1) // 4).tolist()
        hit = number % 2 == 0
        found = tuple(Found("key", n, torch.full((n, 1, 1), number) if hit else None) for n in tokens)
        seen.append(dataclasses.replace(item, found=found, pixel_values=None if hit else item.pixel_values))
    plain, cached = (shares(LAYOUTS["padded"], items, encoder, 2) for items in (loaded, seen))
    for before, after in zip(plain, cached, strict=True):
        assert (before.share.sends, before.share.receives) == (after.share.sends, after.share.receives)
        assert after.cached.num_hit + after.share.num_fresh == before.share.num_fresh
    assert sum(part.cached.num_hit for part in cached) == sum(item.sample.num_visual for item in seen[::2])


def test_images_are_dealt_by_their_patches():
    assert deal(np.array([4, 16, 4, 8]), 2).tolist() == [1, 0, 1, 1]
    assert deal(np.array([], dtype=np.int64), 2).tolist() == []
