"""ZeRO-3 (arXiv 1910.02054): as ZeRO-2, and each process keeps a share of every weight and gathers layers as they run.

ZeRO++ (arXiv 2306.10209): a second copy of the weights' shares within a node (hpz), for gathers that do not leave it,
and traffic of 8-bit weights and 4-bit gradients.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.memory.strategy.config import SMALL, Bytes, Model
from harness.memory.strategy.zero import OffloadConfig, build_stage, offload
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks, Weight


@dataclass(kw_only=True, slots=True)
class Zero3Config(OffloadConfig):
    """Splits the optimiser's state, gradients and weights."""

    sharded: ClassVar[bool] = True
    name: str = "zero3"
    offload_param: bool = False
    """Keep the shares of the weights in the host's memory as well."""
    prefetch_bucket_size: int | None = None
    """Values that are gathered ahead of their use. Null: those of a decoder layer."""
    keep_trained: bool | None = None
    """Keep weights that train whole within a step on every process, where others come and go with their layer; their
    gradients and state are split in any case. Null: where they are at most a sixteenth of the model's bytes, as most
    adapters are, and without `quantized_weights`."""
    param_persistence_threshold: int | None = None
    """Weights with no more values are kept whole as well. Null: norms and biases are, without `quantized_weights`, and
    no matrix."""
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
        for key in ("keep_trained", "param_persistence_threshold"):
            if self.quantized_weights and (given := getattr(self, key)):
                remedy = "what is kept would be exact or of 8 bits by turns, with quantized_weights; leave it out"
                raise reject(f"memory.strategy.{key}", str(given).lower(), remedy)

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what stage 2 has, with a share of the weights, and what is gathered at once."""
        found, own = OffloadConfig.held(self, model, processes), 2 * model.trained_values
        live = min(2 * self.max_live_parameters, model.outside + 2 * model.largest_layer)
        copies = 1 / processes + (1 / self.hpz_partition_size if self.hpz_partition_size > 1 else 0)
        kept = own if self.keeps_trained(model.trained_bytes / model.whole.weights) else 0
        weights = found.weights * (0 if self.offload_param else copies) + kept + live
        return Bytes(weights, found.gradients - own + own / processes, found.state)

    def keeps_trained(self, trained_share: float) -> bool:
        """Says whether what trains is whole within a step.

        Args:
            trained_share: Its bytes over those of the model.
        """
        if self.keep_trained is not None:
            return self.keep_trained
        return trained_share <= SMALL and not self.quantized_weights


@register("memory/strategy", Zero3Config)
def build(config: Zero3Config, ranks: "Ranks") -> "Parallel":
    """Makes DeepSpeed's stage 3.

    Args:
        config: Its settings.
        ranks: Of the run.

    Raises:
        UserError: The processes can not be put into groups of `hpz_partition_size`.
    """
    if ranks.world_size % config.hpz_partition_size:
        remedy = f"{ranks.world_size} processes do not make groups of it; give a divisor"
        raise reject("memory.strategy.hpz_partition_size", config.hpz_partition_size, remedy)
    keeps_trained, threshold = config.keeps_trained(ranks.trained_share), config.param_persistence_threshold or 0
    keeps_vectors = config.param_persistence_threshold is None and not config.quantized_weights

    def keeps(weight: "Weight") -> bool:
        chosen = (keeps_trained and weight.trains) or (keeps_vectors and weight.dims == 1)
        return chosen or weight.values <= threshold

    ahead = config.prefetch_bucket_size
    if ahead is None:
        # What is split of it, and not more: DeepSpeed stops with the weight that reaches the number.
        ahead = sum(weight.values for weight in ranks.layer if not keeps(weight))
    made = build_stage(
        3,
        config,
        ranks,
        keeps=keeps,
        stage3_prefetch_bucket_size=ahead,
        stage3_param_persistence_threshold=threshold,
        stage3_max_live_parameters=config.max_live_parameters,
        zero_hpz_partition_size=config.hpz_partition_size,
        zero_quantized_weights=config.quantized_weights,
        zero_quantized_gradients=config.quantized_gradients,
        **offload(config, params=config.offload_param),
    )
    made.settings |= {"keep_trained": keeps_trained, "keep_vectors": keeps_vectors}
    return made
