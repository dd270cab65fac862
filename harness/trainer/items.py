"""What the last validation found of each item, for a comparison of runs item by item: `items.json` in the run folder.

Runs of one sweep are validated on the same rows, and most of what makes a mean over rows uncertain is common to them.
With the items at hand, differences are taken row by row (Miller 2024, "Adding error bars to evals", arXiv:2411.00640).

Shapes: K supervised tokens.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from harness.data.batch import Batch
from harness.experiment.folder import write_json

Sums = dict[str, tuple[float, int]]
"""By origin of the row: its loss summed over supervised tokens, and their number."""


class ItemLosses:
    """Adds up losses by row, on this rank."""

    def __init__(self) -> None:
        self._each: list[Tensor] = []
        self._rows: list[np.ndarray] = []
        self._origins: list[str] = []

    def add(self, loss_K: Tensor, batch: Batch) -> None:
        """Takes a padded batch in; nothing waits for the device.

        Args:
            loss_K: Loss of each supervised token, without gradient.
            batch: The batch as the loader gave it, on the CPU.
        """
        self._each.append(loss_K)
        self._rows.append(len(self._origins) + batch.target_index.numpy() // batch.input_ids.shape[1])
        self._origins += batch.origins

    def take(self) -> Sums:
        """Returns what was added; samples of one row count together."""
        if not self._origins:
            return {}
        rows = np.concatenate(self._rows)
        losses = np.concatenate([loss_K.double().cpu().numpy() for loss_K in self._each])
        summed = np.bincount(rows, losses, len(self._origins)).tolist()
        counts = np.bincount(rows, minlength=len(self._origins)).tolist()
        return merge(
            [{origin: (loss, count)} for origin, loss, count in zip(self._origins, summed, counts, strict=True)]
        )


def merge(parts: Iterable[Sums]) -> Sums:
    """Adds up what several samples, or ranks, have of the same rows."""
    total: Sums = {}
    for part in parts:
        for origin, (loss, count) in part.items():
            before = total.get(origin, (0.0, 0))
            total[origin] = before[0] + loss, before[1] + count
    return total


def write(path: Path, step: int, sums: Sums, answers: Iterable[dict[str, Any]]) -> None:
    """Replaces the file by what this validation found.

    Args:
        path: items.json of the run folder.
        step: Optimiser steps done.
        sums: Losses of all rows.
        answers: Items of predictions.jsonl of this step; none where nothing is generated.
    """
    matches: dict[str, list[bool]] = {}
    for answer in answers:
        matches.setdefault(answer["origin"], []).append(answer["exact_match"])
    content: dict[str, Any] = {
        "step": step,
        "origin": list(sums),
        "loss": [float(f"{loss:.7g}") for loss, _ in sums.values()],
        "tokens": [count for _, count in sums.values()],
    }
    if matches:
        shares = {origin: sum(found) / len(found) for origin, found in matches.items()}
        content["exact_match"] = [shares.get(origin) for origin in sums]
    write_json(path, content, indent=None)
