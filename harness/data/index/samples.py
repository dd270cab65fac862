"""The samples that tokenised rows give: lengths of all of them, and each one by number.

Lengths come from array arithmetic over all rows; rows over the limit alone are looked at one by one.

Shapes: R rows, N samples, M images and videos of all rows.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.data.account import Account
from harness.data.config import Truncation
from harness.data.index.store import Store
from harness.data.row import Rows
from harness.data.template.encoder import NOTHING_SUPERVISED, OVER_MAX_LENGTH, Dropped, EncodedSample, Encoder
from harness.data.template.text import blocks


class Samples(Protocol):
    """What the loader's workers read."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, number: int) -> EncodedSample:
        """Returns a sample; raises RowError where its row can no longer be read."""


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Samples of a split, by number."""

    rows: Rows
    store: Store
    encoder: Encoder
    grids: np.ndarray
    """(M, 3) int32: patches of each image and video."""
    row: np.ndarray
    """(N,) int32: row of each sample."""
    pieces: np.ndarray
    """(N, 2) int32: the piece of the row, in expanded tokens; (0, 0) for the whole."""
    lengths: np.ndarray
    """(N,) int32: tokens."""
    supervised: np.ndarray
    """(N,) int32: tokens that carry loss."""
    visual: np.ndarray
    """(N,) int32: image and video tokens."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.row)

    def __getitem__(self, number: int) -> EncodedSample:
        """Reads a sample from the store, and its row again where it shows something."""
        row = int(self.row[number])
        start, end = self.pieces[number].tolist()
        a = self.store.arrays
        grids = self.grids[a.media_bounds[row] : a.media_bounds[row + 1]]
        found = self.store[row]
        shows = self.rows[row] if len(grids) else None
        piece = (start, end) if end else None
        return self.encoder.sample(found, grids, shows, piece, self.rows.origin(row))


def index(rows: Rows, store: Store, encoder: Encoder, account: Account) -> SampleIndex:
    """Works out the samples of a split and enters what becomes of each row.

    Raises:
        RowError: A row is over the limit, and `data.truncation=raise`.
    """
    a = store.arrays
    grids_M3, resized_M = _grids(store, encoder)
    tokens_M = grids_M3[:, 1:].astype(np.int64).prod(axis=1) // encoder.pixels.merge_size**2
    blocks_M = blocks(a.media)
    visual_R = _sums(tokens_M * blocks_M, a.media_bounds)
    lengths_R = np.diff(a.ids_bounds) + visual_R - _sums(blocks_M, a.media_bounds)
    supervised_R = _sums(np.diff(a.spans, axis=1)[:, 0], a.spans_bounds)
    usable_R = np.ones(len(store), dtype=bool)
    usable_R[list(store.errors)] = False
    for number in sorted(store.errors):
        account.skipped.add(store.errors[number].reason, str(store.errors[number]))
    for number in np.flatnonzero(usable_R & (supervised_R == 0)).tolist():
        account.dropped.add(NOTHING_SUPERVISED, rows.origin(number))
    usable_R &= supervised_R > 0
    long = np.flatnonzero(usable_R & (lengths_R > encoder.max_length))
    usable_R[long] = False
    whole = np.flatnonzero(usable_R)
    row_N, pieces_N2 = [whole], [np.zeros((len(whole), 2), dtype=np.int64)]
    lengths_N, supervised_N, visual_N = [lengths_R[whole]], [supervised_R[whole]], [visual_R[whole]]
    for sample, number, piece in _cut(rows, store, encoder, grids_M3, long, account):
        row_N.append(np.array([number]))
        pieces_N2.append(np.array([piece]))
        lengths_N.append(np.array([len(sample.ids)]))
        supervised_N.append(np.array([sample.num_supervised]))
        visual_N.append(np.array([sample.num_visual]))
    row = np.concatenate(row_N)
    # Pieces take the place of their row; a stable sort keeps them in order.
    order = np.argsort(row, kind="stable")
    columns = [np.concatenate(column).astype(np.int32)[order] for column in (lengths_N, supervised_N, visual_N)]
    pieces = np.concatenate(pieces_N2).astype(np.int32)[order]
    made = SampleIndex(rows, store, encoder, grids_M3, row[order].astype(np.int32), pieces, *columns)
    _count(made, account, resized_M)
    return made


def _cut(
    rows: Rows, store: Store, encoder: Encoder, grids_M3: np.ndarray, long: np.ndarray, account: Account
) -> list[tuple[EncodedSample, int, tuple[int, int]]]:
    """Returns the pieces of rows over the limit, as the setting says."""
    if encoder.truncation is Truncation.delete:
        for number in long.tolist():
            account.dropped.add(OVER_MAX_LENGTH, rows.origin(number))
        return []
    cuts = []
    bounds = store.arrays.media_bounds
    for number in long.tolist():
        origin, found, grids = rows.origin(number), store[number], grids_M3[bounds[number] : bounds[number + 1]]
        pieces = encoder.pieces(found, grids, origin)
        if isinstance(pieces, Dropped):
            account.dropped.add(pieces.reason, origin)
            continue
        account.truncated.add(encoder.truncation.name, origin)
        shows = rows[number] if len(grids) else None
        cuts += [(encoder.sample(found, grids, shows, piece, origin), number, piece) for piece in pieces if piece]
    return cuts


def _grids(store: Store, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Returns the grid of each image and video, and how its bounds changed it: 0 not, 1 shrunk, 2 enlarged.

    Pictures of one size get one answer: a data set has few sizes, or few enough.
    """
    a = store.arrays
    per_row = np.diff(a.media_bounds)
    keyed_M5 = np.concatenate([a.media, np.repeat(a.pixel_limits, per_row, axis=0)], axis=1)
    if not len(keyed_M5):
        return np.empty((0, 3), dtype=np.int32), np.empty(0, dtype=np.int8)
    sizes, which = np.unique(keyed_M5, axis=0, return_inverse=True)
    made = [encoder.grids(size[None, :3], (int(size[3]), int(size[4])))[0] for size in sizes]
    changed = [
        0 if frames else _RESIZED.index(encoder.pixels.resized(height, width, low or None, high or None))
        for frames, height, width, low, high in sizes.tolist()
    ]
    which = which.reshape(-1)
    return np.array(made, dtype=np.int32)[which], np.array(changed, dtype=np.int8)[which]


_RESIZED = (None, "shrunk", "enlarged")


def _count(made: SampleIndex, account: Account, resized_M: np.ndarray) -> None:
    account.samples += len(made)
    account.tokens += int(made.lengths.sum(dtype=np.int64))
    account.visual_tokens += int(made.visual.sum(dtype=np.int64))
    account.supervised_tokens += int(made.supervised.sum(dtype=np.int64))
    used = np.unique(made.row)
    for code, name in enumerate(_RESIZED):
        if name is not None:
            hit = used[_sums(resized_M == code, made.store.arrays.media_bounds)[used] > 0]
            for number in hit[:10].tolist():
                account.resized.add(name, made.rows.origin(number))
            if len(hit) > 10:
                account.resized.counts[name] += len(hit) - 10


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns the sum of each row's values (R,)."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[bounds[1:]] - total[bounds[:-1]]
