"""ZeRO-1 (arXiv 1910.02054): each process updates a share of the weights and keeps the optimiser's state of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.memory.strategy.zero import OffloadConfig, build_stage, offload
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks


@dataclass(kw_only=True, slots=True)
class Zero1Config(OffloadConfig):
    """Splits the optimiser's state."""

    name: str = "zero1"


@register("memory/strategy", Zero1Config)
def build(config: Zero1Config, ranks: "Ranks") -> "Parallel":
    """Makes DeepSpeed's stage 1.

    Args:
        config: Its settings.
        ranks: Of the run.
    """
    return build_stage(1, config, ranks, **offload(config))
