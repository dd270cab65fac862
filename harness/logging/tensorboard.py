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
    """Seconds between two writes of what was logged; a killed process loses at most this much of its curves."""

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

    logger = TensorBoardLogger(
        save_dir=run.folder,
        name="tensorboard",
        version="",
        default_hp_metric=False,
        flush_secs=config.flush_seconds,
        # Hides what a killed process logged after the checkpoint: those steps run again.
        purge_step=run.initial_step + 1 if run.resumed else None,
    )
    logger.log_hyperparams(run.config)
    return [logger]
