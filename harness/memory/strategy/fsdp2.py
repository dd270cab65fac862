"""FSDP2: each process keeps a share of every weight, gradient and state, and gathers a layer when it runs.

Sharding as in ZeRO-3 (Rajbhandari et al., arXiv 1910.02054), by torch's `fully_shard`: each parameter is a DTensor,
split along its first dimension; a decoder layer or a block of the ViT is gathered at once, while the one before it
computes. Embedding, head, norms and mergers form the outermost group, gathered for the whole step.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.memory.strategy.config import Bytes, Model, StrategyConfig
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks


class ShardType(Enum):
    """Type in which weights or gradients travel."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(kw_only=True, slots=True)
class Fsdp2Config(StrategyConfig):
    """Settings of `fully_shard`, through Lightning's ModelParallelStrategy."""

    sharded: ClassVar[bool] = True
    gathers_around_blocks: ClassVar[bool] = True
    splits_updates: ClassVar[bool] = True
    saves_parts: ClassVar[bool] = True
    scales_fp16: ClassVar[bool] = False

    name: str = "fsdp2"
    reshard_after_forward: bool = True
    """Let go of a layer's weights after its forward pass and gather them again for the backward pass (full_shard).
    false keeps them until then: a third less traffic, and the whole model in memory (shard_grad_op)."""
    shard_size: int | None = None
    """Processes that share one copy of the model, copies being averaged as in DDP (hybrid_shard): usually those of one
    node. Null: all of them."""
    cpu_offload: bool = False
    """Keep shards of weights, gradients and state in the host's memory, where the optimiser runs too."""
    param_dtype: ShardType | None = None
    """Type in which weights are gathered. Null: bfloat16 for the layers and blocks of a model that trains as a whole
    under bf16: half the traffic, and products take that type in any case, but norms round to it. Else theirs."""
    reduce_dtype: ShardType | None = None
    """Type in which gradients are summed over the processes. Null: that of the weights, gathered in another or not."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.shard_size is not None and self.shard_size < 1:
            raise reject("memory.strategy.shard_size", self.shard_size, "must be 1 or more, or null for all processes")

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns a share of everything, and what is gathered: two layers and what is outside of them, or the model.

        With `cpu_offload` only what is gathered is on the GPU.
        """
        size, whole = self.shard_size or processes, model.whole
        gathered = model.outside + 2 * model.largest_layer if self.reshard_after_forward else whole.weights
        if self.cpu_offload:
            return Bytes(gathered, 0, 0)
        gathered = gathered if size > 1 else 0
        return Bytes(whole.weights / size + gathered, whole.gradients / size, whole.state / size)


@register("memory/strategy", Fsdp2Config)
def build(config: Fsdp2Config, ranks: "Ranks") -> "Parallel":
    """Makes Lightning's ModelParallelStrategy, and what splits a model.

    Args:
        config: Its settings.
        ranks: Of the run.

    Raises:
        UserError: The processes can not be put into groups of `shard_size`.
    """
    from functools import partial

    from lightning.pytorch.strategies import ModelParallelStrategy

    from harness.memory.strategy import fully_shard
    from harness.memory.strategy.parallel import Parallel

    size = config.shard_size
    if size is not None and ranks.world_size % size:
        remedy = f"{ranks.world_size} processes do not make groups of it; give a divisor"
        raise reject("memory.strategy.shard_size", size, remedy)
    process_group = dict(ranks.process_group)
    if config.cpu_offload and ranks.device_type == "cuda":
        # Norms of gradients on the host are summed there.
        process_group.setdefault("process_group_backend", "cpu:gloo,cuda:nccl")
    strategy = ModelParallelStrategy(
        data_parallel_size=ranks.world_size, tensor_parallel_size=1, save_distributed_checkpoint=True, **process_group
    )
    settings = {key: value.name if isinstance(value, Enum) else value for key, value in asdict(config).items()}
    del settings["name"]
    return Parallel(
        strategy,
        {"strategy": "fsdp2", "processes": ranks.world_size, **settings, "shard_size": size or ranks.world_size},
        sharded=True,
        shard=partial(fully_shard.shard, config),
        root=lambda module, stepping: module,
        clip=fully_shard.clip,
        gradient=fully_shard.gradient,
        gather=fully_shard.gather,
    )
