"""DDP (Li et al., arXiv 2006.15704): each process has the whole model; gradients are averaged in buckets.

The averages run beside the backward pass. Weights, gradients and optimiser state cost on each GPU what they do on one.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.memory.strategy.config import StrategyConfig
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks


@dataclass(kw_only=True, slots=True)
class DdpConfig(StrategyConfig):
    """Settings of torch's DistributedDataParallel."""

    shares_sequences: ClassVar[bool] = True

    name: str = "ddp"
    find_unused_parameters: bool | None = None
    """Look in each step for trained parameters without gradient, which costs a walk over the graph. Null: where the
    optimiser leaves some out (optim=lisa), for nothing else here does."""
    static_graph: bool = False
    """The same parameters get gradients in every step: torch then learns their order in the first one."""
    bucket_cap_mb: float = 25.0
    """MiB of gradients that are averaged at once."""
    gradient_as_bucket_view: bool = True
    """Gradients lie in the buckets: one copy of them less."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 < self.bucket_cap_mb < math.inf:
            raise reject("memory.strategy.bucket_cap_mb", self.bucket_cap_mb, "must be more than 0")
        if self.static_graph and self.find_unused_parameters:
            remedy = "a static graph has no parameters to look for in each step; set one of the two"
            raise reject("memory.strategy.static_graph", "true", remedy)


@register("memory/strategy", DdpConfig)
def build(config: DdpConfig, ranks: "Ranks") -> "Parallel":
    """Makes Lightning's DDPStrategy.

    Args:
        config: Its settings.
        ranks: Of the run.

    Raises:
        UserError: The optimiser leaves parameters out, and nothing is to look for them.
    """
    from harness.memory.strategy.distributed import Distributed
    from harness.memory.strategy.parallel import Parallel

    find = config.find_unused_parameters
    for key in ("find_unused_parameters", "static_graph"):
        if ranks.skips_parameters and getattr(config, key) is (key == "static_graph"):
            remedy = "the optimiser leaves parameters without gradients, for which the processes would wait"
            raise reject(f"memory.strategy.{key}", getattr(config, key), f"{remedy}; leave it out")
    # No buffer here is other than that of the first rank: nothing is to be sent ahead of each forward pass.
    chosen = {"find_unused_parameters": ranks.skips_parameters if find is None else find, "broadcast_buffers": False}
    options = asdict(config) | chosen
    del options["name"]
    strategy = Distributed(**options)
    return Parallel(strategy, {"strategy": "ddp", "processes": ranks.world_size, **options})
