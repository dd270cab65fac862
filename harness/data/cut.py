"""Cuts a micro-batch into smaller ones by rows, so that their summed losses are its own.

Shapes as in `harness.data.batch`; R rows of a part.
"""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from harness.data.batch import Batch, Cached, within
from harness.model.vision import vision_index


def cut(batch: Batch, parts: int, side: int, merge: int) -> list[Batch]:
    """Returns a batch in parts of nearly equal numbers of rows; what it counts of samples goes with the first part.

    Args:
        batch: On the CPU.
        parts: How many, at most as many as there are rows.
        side: Side of the vision tower's learned grid of positions.
        merge: Patches merged along each side into one visual token.
    """
    rows = batch.input_ids.shape[0]
    assert 1 <= parts <= rows
    bounds = [rows * number // parts for number in range(parts + 1)]
    vision = _Vision(batch, merge)
    made = [_rows(batch, low, high, vision) for low, high in pairwise(bounds)]
    for part in made:
        if part.grid_thw is not None:
            part.vision = vision_index(part.grid_thw, side, merge)
            sizes_N = part.grid_thw[:, 1] * part.grid_thw[:, 2]
            part.num_frame_pairs = int((part.grid_thw[:, 0] * sizes_N**2).sum())
    for part in made[1:]:
        # Which samples lie in which row is not known any more; sums over the parts are the batch's.
        part.num_samples = part.num_tokens = part.num_pairs = 0
        part.origins, part.skipped = [], []
    return made


def _rows(batch: Batch, low: int, high: int, vision: "_Vision") -> Batch:
    length = batch.input_ids.shape[1]
    first, last = low * length, high * length
    starts_C = batch.cu_seqlens
    inside_C = starts_C[(starts_C >= first) & (starts_C <= last)] - first
    taught_K = within(batch.target_index, first, last)
    shown_V = within(batch.visual_index, first, last)
    pixels, grid, cached = vision.of(shown_V)
    return dataclasses.replace(
        batch.stretch(first, shown_V, taught_K),
        input_ids=batch.input_ids[low:high],
        attention_mask=None if batch.attention_mask is None else batch.attention_mask[low:high],
        position_ids=batch.position_ids[:, low:high],
        cu_seqlens=inside_C,
        pixel_values=pixels,
        grid_thw=grid,
        max_seqlen=int(inside_C.diff().max()),
        num_supervised=int(taught_K.sum()),
        num_visual=int(shown_V.sum()),
        num_frame_pairs=0,
        vision=None,
        cached=cached,
    )


class _Vision:
    """Which images, patches and cached features the visual tokens of some rows stand for."""

    def __init__(self, batch: Batch, merge: int) -> None:
        self._batch = batch
        cached, number = batch.cached, batch.num_visual
        if cached is None or cached.order is None:
            self._is_hit_V = torch.full((number,), cached is not None and cached.num_hit > 0)
        else:
            self._is_hit_V = cached.order >= number - cached.num_hit
        grid_N3 = torch.zeros(0, 3, dtype=torch.int64) if batch.grid_thw is None else batch.grid_thw
        self._patches_N = grid_N3.prod(1)
        self._tokens_N = self._patches_N // merge**2

    def of(self, shown_V: Tensor) -> tuple[Tensor | None, Tensor | None, Cached | None]:
        """Returns pixels, grid and cache of the visual tokens that a mask picks: those of whole images, in order."""
        batch = self._batch
        run_M = shown_V[~self._is_hit_V]
        # A row has all tokens of an image or none: the first of them tells.
        firsts_N = self._tokens_N.cumsum(0) - self._tokens_N
        picked_N = run_M[firsts_N] if len(firsts_N) else run_M[:0]
        pixels = grid = None
        if batch.pixel_values is not None and batch.grid_thw is not None and picked_N.any():
            pixels = batch.pixel_values[picked_N.repeat_interleave(self._patches_N)]
            grid = batch.grid_thw[picked_N]
        return pixels, grid, self._cached(shown_V, picked_N.tolist())

    def _cached(self, shown_V: Tensor, picked_N: list[bool]) -> Cached | None:
        cached = self._batch.cached
        if cached is None or not shown_V.any():
            return None
        hit_V = self._is_hit_V[shown_V]
        num_hit = int(hit_V.sum())
        order_V = torch.where(hit_V, len(hit_V) - num_hit + hit_V.cumsum(0) - 1, (~hit_V).cumsum(0) - 1)
        features = None if cached.features is None else cached.features[shown_V[self._is_hit_V]]
        return Cached(
            features=features if num_hit else None,
            order=order_V if 0 < num_hit < len(hit_V) else None,
            missed=list(_picked(cached.missed, picked_N)),
            num_hit=num_hit,
            num_damaged=cached.num_damaged if bool(shown_V[0]) else 0,
        )


def _picked(missed: list[tuple[str | None, int]], picked_N: list[bool]) -> Iterator[tuple[str | None, int]]:
    for item, is_picked in zip(missed, picked_N, strict=True):
        if is_picked:
            yield item
