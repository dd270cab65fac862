"""Shares one batch out over ranks: to each a slice of its tokens, and some of its images for the vision tower.

Each rank makes the whole batch and keeps its own part, so that no rank has to tell another what it holds. Rows are laid
end to end and cut into equal slices wherever that falls; targets are known by then, so that the last token of a slice
predicts the first one of the next. Images go whole: the largest first, each to the rank that has the fewest patches so
far. Who has an image does not depend on what a cache holds, which ranks may see differently.

Shapes as in `harness.data.batch`; N images and videos of the whole batch, L = T / size tokens of a slice, W visual
tokens in it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.data.batch import Batch, Share, within
from harness.data.collator import join_found
from harness.data.features.lookup import Found
from harness.data.template.encoder import LoadedSample


def take_share(batch: Batch, loaded: Sequence[LoadedSample], rank: int, size: int, merge: int) -> Batch:
    """Returns what one rank has of a batch; `vision` is left to the caller.

    Args:
        batch: The whole, its rows a multiple of `size` long.
        loaded: Its samples, in the order of their tokens.
        rank: Which of the ranks that share it.
        size: Their number.
        merge: Patches merged along each side into one visual token.
    """
    rows, length = batch.input_ids.shape
    assert rows * length % size == 0, "the layout pads rows to a multiple"
    slice_length = rows * length // size
    first, last = rank * slice_length, (rank + 1) * slice_length
    taught_K = within(batch.target_index, first, last)
    shown_V = within(batch.visual_index, first, last)
    grids_N3 = np.concatenate([item.sample.grids for item in loaded] or [np.zeros((0, 3))]).astype(np.int64)
    owner_N = deal(grids_N3.prod(axis=1), size)
    owner_V = np.repeat(owner_N, grids_N3.prod(axis=1) // merge**2)
    assert len(owner_V) == batch.num_visual
    reader_V = batch.visual_index.numpy() // slice_length
    pixels, grid_thw, found = _of_rank(loaded, owner_N == rank)
    share = Share(
        rank=rank,
        size=size,
        rows=rows,
        positions=batch.position_ids[0],
        sees=batch.num_visual > 0,
        sends=np.bincount(reader_V[owner_V == rank], minlength=size).tolist(),
        receives=np.bincount(owner_V[reader_V == rank], minlength=size).tolist(),
        order=torch.from_numpy(_order(owner_V[reader_V == rank])),
        num_fresh=0 if grid_thw is None else int(grid_thw.prod(1).sum()) // merge**2,
    )
    return dataclasses.replace(
        batch.stretch(first, shown_V, taught_K),
        input_ids=batch.input_ids.view(1, -1)[:, first:last],
        position_ids=batch.position_ids.flatten(1)[:, None, first:last],
        pixel_values=pixels,
        grid_thw=grid_thw,
        num_frame_pairs=0 if grid_thw is None else int((grid_thw[:, 0] * grid_thw[:, 1:].prod(1) ** 2).sum()),
        cached=None if batch.cached is None else join_found(found),
        share=share,
    )


def deal(patches_N: np.ndarray, size: int) -> np.ndarray:
    """Returns (N,) the rank of each image: the largest first, each to the one with the fewest patches so far."""
    owner_N = np.zeros(len(patches_N), dtype=np.int64)
    held = np.zeros(size, dtype=np.int64)
    for number in np.argsort(-patches_N, kind="stable"):
        owner_N[number] = held.argmin()
        held[owner_N[number]] += patches_N[number]
    return owner_N


def _order(owner_W: np.ndarray) -> np.ndarray:
    """Returns (W,) where each visual token stands once they are sorted by who sends them."""
    order_W = np.empty(len(owner_W), dtype=np.int64)
    order_W[np.argsort(owner_W, kind="stable")] = np.arange(len(owner_W))
    return order_W


def _of_rank(loaded: Sequence[LoadedSample], mine_N: np.ndarray) -> tuple[Tensor | None, Tensor | None, list[Found]]:
    """Returns pixels and grids of a rank's images that are not cached, and what the cache has of all of its images."""
    pixels, grids, kept = [], [], []
    mine = iter(mine_N.tolist())
    for item in loaded:
        found: Sequence[Found | None] = item.found or [None] * len(item.sample.grids)
        is_run = [one is None or one.features is None for one in found]
        sizes = item.sample.grids[is_run].prod(axis=1).tolist()
        parts = iter(() if item.pixel_values is None else item.pixel_values.split(sizes))
        for grid, one, run in zip(item.sample.grids, found, is_run, strict=True):
            part = next(parts) if run else None
            if not next(mine):
                continue
            if part is not None:
                pixels.append(part)
                grids.append(grid.astype(np.int64))
            if one is not None:
                kept.append(one)
    if not pixels:
        return None, None, kept
    return torch.cat(pixels), torch.from_numpy(np.stack(grids)), kept
