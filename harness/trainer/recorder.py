"""Turns steps into rows of metrics.jsonl and hands them on to loggers and the progress display."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.logging.metrics import MetricsFile
from harness.logging.progress import Progress
from harness.logging.tracker import log_row
from harness.trainer.channel_loss import channel_metrics
from harness.trainer.loss_check import DivergedError, LossCheck
from harness.trainer.meter import Totals

log = logging.getLogger(__name__)

SHOWN = 100
"""Rows of a step that a log line names."""


@dataclass(slots=True)
class Recorder:
    """Buffers steps on the device and reads them together: one wait for the GPU per log interval, a row per step."""

    file: MetricsFile | None
    """None on all ranks but the first."""
    loggers: list[Any]
    progress: Progress | None
    world_size: int
    check: LossCheck = field(default_factory=LossCheck)
    """Told of every step, on every rank."""
    channels: Sequence[str] = ()
    """Whose losses the steps bring."""
    sequence_parallel: int = 1
    """Ranks that share a micro-batch, whose tokens count once."""
    _pending: list[dict[str, Any]] = field(default_factory=list)
    _tensors: list[Tensor] = field(default_factory=list)
    _origins: list[list[str]] = field(default_factory=list)
    _held: dict[str, Any] = field(default_factory=dict)

    def step(
        self,
        step: int,
        loss: Tensor,
        grad_norm: Tensor,
        learning_rates: dict[str, float],
        channel_sums: Tensor | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        """Takes one optimiser step.

        Args:
            step: Number of the step, from 1.
            loss: This rank's share of the step's loss (scalar, on the device).
            grad_norm: Global norm before clipping (scalar, on the device), equal on all ranks.
            learning_rates: Of the step just taken, by parameter group.
            channel_sums: What `ChannelLoss.take` returned (on the device), where there are channels.
            origins: Rows that the step had on this rank, for what is said of it.
        """
        self._origins.append(list(dict.fromkeys(origins)))
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
            DivergedError: A loss or norm is not finite, and `check` ends the run for it; the rows are written first.
        """
        values = torch.stack(self._tensors)
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        rows, self._pending, self._tensors = self._pending, [], []
        origins, self._origins = self._origins, []
        diverged: DivergedError | None = None
        for row, rows_of_step, (loss, norm, *sums) in zip(rows, origins, values.tolist(), strict=True):
            row |= {"train/loss": loss, "train/grad_norm": norm}
            row |= channel_metrics("train/loss", self.channels, sums)
            diverged = diverged or self._judge(row, rows_of_step)
        *earlier, self._held = rows
        self._held |= interval.rates(self.world_size // self.sequence_parallel) | metrics
        for row in earlier:
            self._write(row)
        if diverged is not None:
            self.commit({})
            raise diverged
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

    def _judge(self, row: dict[str, Any], origins: Sequence[str]) -> DivergedError | None:
        """Adds to a row what its step was, and warns of it; returns the error that ends the run, if it does."""
        loss, norm = row["train/loss"], row["train/grad_norm"]
        verdict = self.check.look(loss, norm)
        row |= verdict.figures
        found = verdict.spike or f"loss {loss}, gradient norm {norm}"
        text = f"step {row['step']}: {found}"
        if verdict.nonfinite_in_a_row > 1:
            text += f", {verdict.nonfinite_in_a_row} steps in a row"
        if verdict.figures:
            log.warning("%s; its rows: %s", text, _names(origins))
        if not verdict.diverged:
            return None
        error = DivergedError(text)
        error.step = row["step"]
        return error

    def _write(self, row: dict[str, Any]) -> None:
        if self.file is None:
            return
        log_row(self.loggers, self.file.write(row["step"], row))
        if self.progress is not None:
            self.progress.update(row["step"], row)


def _names(origins: Sequence[str]) -> str:
    more = f" and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
    return ", ".join(origins[:SHOWN]) + more
