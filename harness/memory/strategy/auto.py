"""The usual choice: nothing around one process, DDP around several."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.memory.strategy.config import StrategyConfig
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks


@dataclass(kw_only=True, slots=True)
class AutoConfig(StrategyConfig):
    """Has no settings; those of DDP are in memory/strategy=ddp."""

    shares_sequences: ClassVar[bool] = True

    name: str = "auto"


@register("memory/strategy", AutoConfig)
def build(config: AutoConfig, ranks: "Ranks") -> "Parallel":
    """Returns DDP with its defaults for several processes, and for one what changes nothing."""
    from harness.memory.strategy.ddp import DdpConfig
    from harness.memory.strategy.ddp import build as build_ddp
    from harness.memory.strategy.parallel import Parallel

    if ranks.world_size > 1:
        return build_ddp(DdpConfig(), ranks)
    return Parallel(settings={"strategy": "one process"})
