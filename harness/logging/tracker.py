"""Feeds rows of metrics.jsonl to the trackers, and closes them: they show figures and never make any."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def log_row(loggers: Sequence["Logger"], row: Mapping[str, Any]) -> None:
    """Sends one row, as `MetricsFile.write` returns it, to every tracker. Does nothing on ranks other than 0."""
    figures = {key: value for key, value in row.items() if key != "step"}
    for logger in loggers:
        logger.log_metrics(figures, step=row["step"])


def finish(loggers: Sequence["Logger"], exit_code: int, summary: Mapping[str, Any] | None = None) -> None:
    """Writes out what trackers hold back, and closes the run in W&B, so that the next run starts one of its own.

    Does nothing on ranks other than 0.

    Args:
        loggers: What the builders of this group returned.
        exit_code: 0 marks the run as finished, anything else as failed.
        summary: Final figures, such as those of summary.json, for the tables of runs of W&B and TensorBoard.
    """
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and summary:
            # TensorBoard's table of runs (HParams) takes settings and results together, so not before the end.
            known = {f"summary/{key}": value for key, value in summary.items() if value is not None}
            logger.log_hyperparams(logger.hparams, known)
        logger.finalize("success" if exit_code == 0 else "failed")
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(summary or {}))
            logger.experiment.finish(exit_code=exit_code)
