"""ZeRO-3 (arXiv 1910.02054): as ZeRO-2, and each process keeps a share of every weight and gathers layers as they run.

ZeRO++ (arXiv 2306.10209): a second copy of the weights' shares within a node (hpz), for gathers that do not leave it,
and traffic of 8-bit weights and 4-bit gradients.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.memory.strategy.config import Bytes, Model
from harness.memory.strategy.zero import OffloadConfig, build_stage, offload
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks


@dataclass(kw_only=True, slots=True)
class Zero3Config(OffloadConfig):
    """Splits the optimiser's state, gradients and weights."""

    sharded: ClassVar[bool] = True
    name: str = "zero3"
    offload_param: bool = False
    """Keep the shares of the weights in the host's memory as well."""
    prefetch_bucket_size: int | None = None
    """Values that are gathered ahead of their use. Null: those of a decoder layer."""
    param_persistence_threshold: int = 0
    """Weights with no more values are kept whole everywhere. DeepSpeed gathers each of them by itself after every step,
    where others come with their layer."""
    max_live_parameters: int = 1_000_000_000
    """Values that are whole on a GPU at once, at most."""
    hpz_partition_size: int = 1
    """ZeRO++: processes over which a second copy of the weights is split, usually those of one node; 1 keeps none."""
    quantized_weights: bool = False
    """ZeRO++: gather weights in 8 bits. Changes the loss a little."""
    quantized_gradients: bool = False
    """ZeRO++: reduce gradients in 4 bits, within a node first. Changes the loss a little."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        OffloadConfig.__post_init__(self)
        for key in ("prefetch_bucket_size", "param_persistence_threshold", "max_live_parameters"):
            if (getattr(self, key) or 0) < 0:
                raise reject(f"memory.strategy.{key}", getattr(self, key), "must be 0 or more")
        if self.hpz_partition_size < 1:
            raise reject("memory.strategy.hpz_partition_size", self.hpz_partition_size, "must be 1 or more")

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what stage 2 has, with a share of the weights, and what is gathered at once."""
        found, own = OffloadConfig.held(self, model, processes), 2 * model.trained_values
        live = min(2 * self.max_live_parameters, model.outside + 2 * model.largest_layer)
        copies = 1 / processes + (1 / self.hpz_partition_size if self.hpz_partition_size > 1 else 0)
        weights = found.weights * (0 if self.offload_param else copies) + live
        return Bytes(weights, found.gradients - own + own / processes, found.state)


@register("memory/strategy", Zero3Config)
def build(config: Zero3Config, ranks: "Ranks") -> "Parallel":
    """Makes DeepSpeed's stage 3.

    Args:
        config: Its settings.
        ranks: Of the run.

    Raises:
        UserError: The processes can not be put into groups of `hpz_partition_size`, or there is no GPU to quantise on.
    """
    if ranks.world_size % config.hpz_partition_size:
        remedy = f"{ranks.world_size} processes do not make groups of it; give a divisor"
        raise reject("memory.strategy.hpz_partition_size", config.hpz_partition_size, remedy)
    for key in ("quantized_weights", "quantized_gradients"):
        if getattr(config, key) and ranks.device_type != "cuda":
            raise reject(f"memory.strategy.{key}", "true", "has kernels for a GPU only; leave it out on the CPU")
    ahead = config.prefetch_bucket_size
    if ahead is None:
        # What is split of it, and not more: DeepSpeed stops with the weight that reaches the number.
        ahead = sum(size for size in ranks.layer_sizes if size > config.param_persistence_threshold)
    return build_stage(
        3,
        config,
        ranks,
        stage3_prefetch_bucket_size=ahead,
        stage3_param_persistence_threshold=config.param_persistence_threshold,
        stage3_max_live_parameters=config.max_live_parameters,
        zero_hpz_partition_size=config.hpz_partition_size,
        zero_quantized_weights=config.quantized_weights,
        zero_quantized_gradients=config.quantized_gradients,
        **offload(config, params=config.offload_param),
    )
