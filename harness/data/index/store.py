"""Tokenised rows as flat arrays: in memory, or mapped from a folder, so that a million rows cost no Python objects.

Shapes: R rows, T tokens of all rows, N spans of all rows, M images and videos of all rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from harness.data.row_error import RowError
from harness.data.template.text import TextSample

_ERRORS = "errors.json"
_PATHS = "paths.txt"


@dataclass(frozen=True, slots=True)
class Arrays:
    """The samples of consecutive rows behind one another; a row that can not be used has none of anything."""

    ids: np.ndarray
    """(T,) int32."""
    ids_bounds: np.ndarray
    """(R + 1,) int64: where each row's tokens begin, and their end."""
    spans: np.ndarray
    """(N, 2) int32, counted from the row's first token."""
    spans_bounds: np.ndarray
    """(R + 1,) int64."""
    weights: np.ndarray
    """(N,) float32."""
    media: np.ndarray
    """(M, 3) int32: frames, height, width."""
    media_bounds: np.ndarray
    """(R + 1,) int64."""
    pixel_limits: np.ndarray
    """(R, 2) int64: the row's own bounds in pixels, 0 for none."""
    channels: np.ndarray
    """(R,) int64: `channel_key` of the row's channel, 0 for none."""
    stamps: np.ndarray
    """(M', 2) int64: size in bytes and time of change in ns of each media file, in the order of `Store.paths`."""


@dataclass(frozen=True, slots=True)
class Store:
    """All rows of a source."""

    arrays: Arrays
    errors: dict[int, RowError]
    """By row number."""
    paths: Sequence[str]
    """Media files that the rows name."""

    def __len__(self) -> int:
        """Number of rows, unusable ones among them."""
        return len(self.arrays.ids_bounds) - 1

    def __getitem__(self, row: int) -> TextSample:
        """Returns the tokenised row."""
        a = self.arrays
        ids = a.ids[a.ids_bounds[row] : a.ids_bounds[row + 1]]
        spans = slice(a.spans_bounds[row], a.spans_bounds[row + 1])
        media = a.media[a.media_bounds[row] : a.media_bounds[row + 1]]
        low, high = a.pixel_limits[row].tolist()
        return TextSample(ids, a.spans[spans], a.weights[spans], media, (low, high), int(a.channels[row]))

    def save(self, folder: Path) -> None:
        """Writes the arrays, one file each, into an existing folder."""
        for field in fields(Arrays):
            np.save(folder / f"{field.name}.npy", getattr(self.arrays, field.name), allow_pickle=False)
        _save_rest(folder, self.errors, self.paths)


def load(folder: Path) -> Store:
    """Maps a saved store; nothing is read but what is used."""
    arrays = {
        field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False) for field in fields(Arrays)
    }
    errors = json.loads((folder / _ERRORS).read_text(encoding="utf-8"))
    text = (folder / _PATHS).read_text(encoding="utf-8", errors="surrogateescape")
    return Store(Arrays(**arrays), {int(row): RowError(*parts) for row, parts in errors.items()}, _lines(text))


def gather(
    samples: Sequence[TextSample | RowError], files: Sequence[tuple[str, tuple[int, int]]], first_row: int = 0
) -> Store:
    """Joins tokenised rows.

    Args:
        samples: Of consecutive rows.
        files: Path and stamp of each media file that they name.
        first_row: Number of the first, by which errors are listed.
    """
    good = [None if isinstance(sample, RowError) else sample for sample in samples]
    kept = [sample for sample in good if sample is not None]
    arrays = Arrays(
        ids=_join([sample.ids for sample in kept], (0,), np.int32),
        ids_bounds=_bounds([0 if sample is None else len(sample.ids) for sample in good]),
        spans=_join([sample.spans for sample in kept], (0, 2), np.int32),
        spans_bounds=_bounds([0 if sample is None else len(sample.spans) for sample in good]),
        weights=_join([sample.weights for sample in kept], (0,), np.float32),
        media=_join([sample.media for sample in kept], (0, 3), np.int32),
        media_bounds=_bounds([0 if sample is None else len(sample.media) for sample in good]),
        pixel_limits=np.array([(0, 0) if sample is None else sample.pixel_bounds for sample in good], np.int64),
        channels=np.array([0 if sample is None else sample.channel for sample in good], np.int64),
        stamps=np.array([stamp for _, stamp in files], np.int64).reshape(-1, 2),
    )
    errors = {first_row + i: sample for i, sample in enumerate(samples) if isinstance(sample, RowError)}
    return Store(arrays, errors, [path for path, _ in files])


def merge(folders: Sequence[Path], target: Path) -> None:
    """Joins the stores of consecutive rows in order, file by file: memory holds one array of one part at a time."""
    for field in fields(Arrays):
        parts = [np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False) for folder in folders]
        if field.name.endswith("_bounds"):
            starts = np.cumsum([0, *(part[-1] for part in parts)])
            joined = np.concatenate([[0], *(part[1:] + start for part, start in zip(parts, starts, strict=False))])
            np.save(target / f"{field.name}.npy", joined, allow_pickle=False)
            continue
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        if shape[0] == 0:
            np.save(target / f"{field.name}.npy", parts[0], allow_pickle=False)
            continue
        whole = np.lib.format.open_memmap(target / f"{field.name}.npy", "w+", parts[0].dtype, shape)
        place = 0
        for part in parts:
            whole[place : place + len(part)] = part
            place += len(part)
        whole.flush()
    errors: dict[int, RowError] = {}
    paths: list[str] = []
    for folder in folders:
        found = json.loads((folder / _ERRORS).read_text(encoding="utf-8"))
        errors |= {int(row): RowError(*parts) for row, parts in found.items()}
        paths += _lines((folder / _PATHS).read_text(encoding="utf-8", errors="surrogateescape"))
    _save_rest(target, errors, paths)


def _save_rest(folder: Path, errors: dict[int, RowError], paths: Sequence[str]) -> None:
    plain = {row: (error.origin, error.reason, error.detail) for row, error in errors.items()}
    (folder / _ERRORS).write_text(json.dumps(plain), encoding="utf-8")
    # A path can hold anything but NUL, line breaks and bytes that are not UTF-8 included.
    (folder / _PATHS).write_text("".join(f"{path}\0" for path in paths), "utf-8", errors="surrogateescape", newline="")


def _lines(text: str) -> list[str]:
    return text.split("\0")[:-1]


def _join(parts: list[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(empty, dtype=dtype)


def _bounds(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
