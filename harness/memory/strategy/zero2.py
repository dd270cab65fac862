"""ZeRO-2 (arXiv 1910.02054): as ZeRO-1, and each process keeps only the gradients of its share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.memory.strategy.config import Bytes, Model
from harness.memory.strategy.zero import OffloadConfig, build_stage, offload
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks


@dataclass(kw_only=True, slots=True)
class Zero2Config(OffloadConfig):
    """Splits the optimiser's state and the gradients."""

    name: str = "zero2"

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what stage 1 has, with a share of the gradients."""
        found = OffloadConfig.held(self, model, processes)
        own = 2 * model.trained_values
        return found._replace(gradients=found.gradients - own + own / processes)


@register("memory/strategy", Zero2Config)
def build(config: Zero2Config, ranks: "Ranks") -> "Parallel":
    """Makes DeepSpeed's stage 2.

    Args:
        config: Its settings.
        ranks: Of the run.
    """
    return build_stage(2, config, ranks, **offload(config))
