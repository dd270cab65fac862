"""What a tuner may know of the run that it is built for: its length, its data, its device and its folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from harness.data.batch import Batch


@dataclass(frozen=True, slots=True)
class Outlook:
    """Handed to every tuner's builder; most look at none of it."""

    total_steps: int
    """Optimiser steps of the whole run."""
    batches: "Callable[[int, int, int | None], Iterator[Batch]]"
    """`DataModule.calibration_batches`: number of batches, samples of each and their longest length to batches."""
    device: "torch.device"
    """Where the model will train; in a run it is there already when builders get it."""
    start_file: Path
    """Where an initialisation that can not be computed again bit by bit keeps itself for a resume (safetensors)."""
