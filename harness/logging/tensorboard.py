"""TensorBoard event files in `<run folder>/tensorboard`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.library import Library
from harness.logging.run_info import RunInfo
from harness.registry import register

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    """Curves for `tensorboard --logdir outputs`, beside the console."""

    library: ClassVar[Library] = Library("tensorboard", "tensorboard", "tensorboard")
    name: str = "tensorboard"
    flush_seconds: int = 30
    """Seconds between two writes of what was logged: what a killed process leaves out until the run goes on."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.flush_seconds < 1:
            raise reject("logging.flush_seconds", self.flush_seconds, "must be 1 or more")


@register("logging", TensorboardConfig)
def build(config: TensorboardConfig, run: RunInfo) -> list["Logger"]:
    """Builds the logger, and writes the config down as hyperparameters.

    Raises:
        UserError: The package tensorboard is missing.
    """
    config.library.find(f"logging={config.name}")
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        # The rows so far are given to the new file. TensorBoard would take old ones by the time of day in their names,
        # and a killed process has lost the last rows of its own.
        for events in (run.folder / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
    logger = TensorBoardLogger(
        save_dir=run.folder,
        name="tensorboard",
        version="",
        default_hp_metric=False,
        flush_secs=config.flush_seconds,
    )
    logger.log_hyperparams(run.config)
    return [logger]
