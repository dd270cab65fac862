"""Rows of metrics.jsonl as W&B takes them, each step once; settings are in `harness.logging.wandb`."""

from collections.abc import Mapping

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only


class StepLogger(WandbLogger):
    """Counts in steps of the optimiser, where Lightning's leaves it to W&B to count the rows."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends one row, unless the server has its step from an attempt before."""
        assert step is not None
        run = self.experiment
        if step >= run.starting_step:
            run.log({**metrics, "trainer/global_step": step}, step=step, commit=True)
