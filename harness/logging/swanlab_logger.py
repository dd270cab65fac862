"""Rows of metrics.jsonl as SwanLab takes them; settings are in `harness.logging.swanlab`."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger


class SwanLabLogger(Logger):
    """Has one experiment, or none on ranks other than 0."""

    def __init__(self, experiment: Any, last_known: int = -1) -> None:
        """Takes an experiment.

        Args:
            experiment: What `swanlab.init` returned.
            last_known: The step up to which it has all rows.
        """
        super().__init__()
        self.experiment = experiment
        self._last_known = last_known

    @property
    def name(self) -> str:
        """The tracker's."""
        return "swanlab"

    @property
    def version(self) -> str | None:
        """The experiment's id."""
        return None if self.experiment is None else str(self.experiment.id)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the config went with the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends one row."""
        if self.experiment is not None and (step is None or step > self._last_known):
            self.experiment.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """Writes out what is held back and ends the experiment."""
        if self.experiment is None:
            return
        failed = status != "success"
        self.experiment.finish("crashed" if failed else "success", "the run failed" if failed else None)
        self.experiment = None
