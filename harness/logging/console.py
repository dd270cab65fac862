"""The console, train.log and metrics.jsonl, which every run has, and no tracker beside them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.logging.run_info import RunInfo
from harness.registry import register

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@dataclass(kw_only=True, slots=True)
class ConsoleConfig:
    """No tracker."""

    name: str = "console"


@register("logging", ConsoleConfig)
def build(config: ConsoleConfig, run: RunInfo) -> list["Logger"]:
    """Returns no logger: what the run prints and writes into its folder needs none."""
    return []
