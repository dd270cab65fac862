"""Turns steps into rows of metrics.jsonl and hands them on to loggers and the progress display."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.logging.metrics import MetricsFile
from harness.logging.progress import Progress
from harness.logging.tracker import log_row
from harness.trainer.channel_loss import channel_metrics
from harness.trainer.meter import Totals

MAX_SKIPPED = 20
"""Steps in a row that a gradient scaler may skip: it halves its scale each time, 2**16 to below 1."""


class DivergedError(RuntimeError):
    """The loss or the gradient norm is no finite number any more."""


@dataclass(slots=True)
class Recorder:
    """Buffers steps on the device and reads them together: one wait for the GPU per log interval, a row per step."""

    file: MetricsFile | None
    """None on all ranks but the first."""
    loggers: list[Any]
    progress: Progress | None
    world_size: int
    skips_overflow: bool = False
    """Under fp16 a gradient that overflows makes the scaler skip the step and lower its scale: no divergence."""
    channels: Sequence[str] = ()
    """Whose losses the steps bring."""
    sequence_parallel: int = 1
    """Ranks that share a micro-batch, whose tokens count once."""
    _pending: list[dict[str, Any]] = field(default_factory=list)
    _tensors: list[Tensor] = field(default_factory=list)
    _held: dict[str, Any] = field(default_factory=dict)
    _skipped: int = 0

    def step(
        self,
        step: int,
        loss: Tensor,
        grad_norm: Tensor,
        learning_rates: dict[str, float],
        channel_sums: Tensor | None = None,
    ) -> None:
        """Takes one optimiser step.

        Args:
            step: Number of the step, from 1.
            loss: This rank's share of the step's loss (scalar, on the device).
            grad_norm: Global norm before clipping (scalar, on the device), equal on all ranks.
            learning_rates: Of the step just taken, by parameter group.
            channel_sums: What `ChannelLoss.take` returned (on the device), where there are channels.
        """
        self._pending.append({"step": step} | {f"train/lr/{name}": lr for name, lr in learning_rates.items()})
        both = torch.stack((loss.float(), grad_norm.float() / self.world_size))
        self._tensors.append(both if channel_sums is None else torch.cat((both, channel_sums.float())))

    @property
    def num_pending(self) -> int:
        """Steps taken and not yet written."""
        return len(self._pending)

    def flush(self, interval: Totals, metrics: dict[str, float]) -> float:
        """Writes the buffered steps but the last, whose row waits for `commit`. Called on every rank.

        Args:
            interval: What the buffered steps went through; its rates go into the last row.
            metrics: More of it for the last row: `memory/...` and `perf/...`.

        Returns:
            The loss of the last step.

        Raises:
            DivergedError: A loss or norm is not finite; the rows are written first.
        """
        values = torch.stack(self._tensors)
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        rows, self._pending, self._tensors = self._pending, [], []
        for row, (loss, norm, *sums) in zip(rows, values.tolist(), strict=True):
            row |= {"train/loss": loss, "train/grad_norm": norm}
            row |= channel_metrics("train/loss", self.channels, sums)
        *earlier, self._held = rows
        self._held |= interval.rates(self.world_size // self.sequence_parallel) | metrics
        for row in earlier:
            self._write(row)
        for row in rows:
            if self._has_diverged(row["train/loss"], row["train/grad_norm"]):
                self.commit({})
                raise DivergedError(
                    f"step {row['step']}: loss {row['train/loss']}, gradient norm {row['train/grad_norm']}"
                )
        return self._held["train/loss"]

    def commit(self, metrics: dict[str, float]) -> None:
        """Writes the last flushed row together with the metrics of a validation, so that a step is one row."""
        if self._held:
            self._write(self._held | metrics)
        self._held = {}

    def write_start(self, metrics: dict[str, float]) -> None:
        """Writes the row of step 0: the metrics of the untrained model."""
        self._write({"step": 0} | metrics)

    def abandon(self) -> None:
        """Writes what an error left buffered, without rates; on one process only, for others may be gone."""
        if self._pending and self.world_size == 1:
            self.flush(Totals(), {})
        self.commit({})

    def _has_diverged(self, loss: float, norm: float) -> bool:
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self.skips_overflow and math.isfinite(loss):
            return self._skipped >= MAX_SKIPPED
        return not (math.isfinite(loss) and math.isfinite(norm))

    def _write(self, row: dict[str, Any]) -> None:
        if self.file is None:
            return
        log_row(self.loggers, self.file.write(row["step"], row))
        if self.progress is not None:
            self.progress.update(row["step"], row)
