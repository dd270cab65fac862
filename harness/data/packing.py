"""Packing: several samples in one row, each seeing itself alone, planned from lengths without looking at content.

Best-fit decreasing: the longest sample first, each into the fullest pack that still holds it. The plan depends on the
lengths and the seed only, and is the same in every epoch; the order of the packs is drawn anew.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Packing:
    """How the samples of a micro-batch share rows."""

    packs: tuple[tuple[int, ...], ...]
    """Sample numbers of each pack; single ones where only padding is to be saved."""
    length: int | None
    """Every pack is filled up to this many tokens, so that shapes stay constant; None: no filling."""
    one_row: bool
    """Join the packs of a micro-batch into one row: flash-attention kernels know sample boundaries in one row only."""


def best_fit(lengths: Sequence[int], capacity: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Returns packs of sample numbers, each of at most `capacity` tokens.

    Args:
        lengths: Tokens of each sample, none over `capacity`.
        capacity: Tokens of a pack.
        seed: Decides which of equally long samples go together.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda sample: -lengths[sample])
    packs: list[list[int]] = []
    # Free tokens of each open pack, ascending, with the pack's number: the first that is large enough fits best.
    free: list[tuple[int, int]] = []
    for sample in order:
        place = bisect.bisect_left(free, (lengths[sample], -1))
        if place == len(free):
            packs.append([])
            room, pack = capacity, len(packs) - 1
        else:
            room, pack = free.pop(place)
        packs[pack].append(sample)
        if room > lengths[sample]:
            bisect.insort(free, (room - lengths[sample], pack))
    return tuple(tuple(pack) for pack in packs)


def efficiency(packs: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int) -> float:
    """Returns the share of a pack's tokens that are no filling, 0 to 1."""
    return sum(lengths[sample] for pack in packs for sample in pack) / (len(packs) * capacity)
