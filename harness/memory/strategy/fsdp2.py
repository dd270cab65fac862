"""FSDP2: each process keeps a share of every weight, gradient and state, and gathers a layer when it runs.

Sharding as in ZeRO-3 (Rajbhandari et al., arXiv 1910.02054), by torch's `fully_shard`: each parameter is a DTensor,
split along its first dimension; a decoder layer or a block of the ViT is gathered at once, while the one before it
computes. Embedding, head, norms and mergers form the outermost group, gathered for the whole step. Whole on every
process is what is small: adapters, and a frozen ViT.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.memory.strategy.config import SMALL, Bytes, Model, StrategyConfig
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks

HOST_AND_GPU = "cpu:gloo,cuda:nccl"
"""Backends of a group that sums on both."""


class ShardType(Enum):
    """Type in which weights or gradients travel."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(kw_only=True, slots=True)
class Fsdp2Config(StrategyConfig):
    """Settings of `fully_shard`, through Lightning's ModelParallelStrategy."""

    sharded: ClassVar[bool] = True
    keeps_frozen_vit: ClassVar[bool] = True
    saves_parts: ClassVar[bool] = True
    scales_fp16: ClassVar[bool] = False
    unsplit: ClassVar[str] = "memory.strategy.replicate_trained=true, or memory/strategy=ddp"

    name: str = "fsdp2"
    reshard_after_forward: bool = True
    """Let go of a layer's weights after its forward pass and gather them again for the backward pass (full_shard).
    false keeps them until then: a third less traffic, and the whole model in memory (shard_grad_op)."""
    shard_size: int | None = None
    """Processes that share one copy of the model, copies being averaged as in DDP (hybrid_shard): usually those of one
    node. Null: all of them."""
    replicate_trained: bool | None = None
    """Keep what trains whole on every process, with its gradients and state, as ddp does: layers have frozen weights
    alone to split and gather, and gradients are summed once a step. Null: where it is at most a sixteenth of the
    model's bytes, as most adapters are. Optimisers and tuners that look at whole matrices take true."""
    cpu_offload: bool = False
    """Keep shards of weights, gradients and state in the host's memory, where the optimiser runs too."""
    copy_engines: bool = False
    """Gather weights with the GPUs' copy engines, and not with kernels that take multiprocessors from what computes.
    Takes NCCL 2.28 or newer, and processes that share a copy of the model on one node."""
    param_dtype: ShardType | None = None
    """Type in which weights are gathered. Null: bfloat16 for the layers and blocks of a model that trains as a whole
    under bf16: half the traffic, and products take that type in any case, but norms round to it. Else theirs."""
    reduce_dtype: ShardType | None = None
    """Type in which gradients are summed over the processes. Null: that of the weights, gathered in another or not."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.shard_size is not None and self.shard_size < 1:
            raise reject("memory.strategy.shard_size", self.shard_size, "must be 1 or more, or null for all processes")

    @property
    def splits_updates(self) -> bool:
        """Says whether it may: with null the model decides, which is known later."""
        return self.replicate_trained is not True

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns a share of everything, and what is gathered: two layers and what is outside of them, or the model.

        With `cpu_offload` only what is gathered is on the GPU.
        """
        from harness.memory.strategy.copy_engines import BUFFERS
        from harness.trainer.reduction import BUCKET

        size, whole = self.shard_size or processes, model.whole
        gathered = model.outside + 2 * model.largest_layer if self.reshard_after_forward else whole.weights
        if self.copy_engines:
            gathered += BUFFERS * model.largest_layer
        kept, share = Bytes(0, 0, 0), model.trained_bytes / whole.weights
        if self.replicates(share):
            sent = min(whole.gradients, 4 * BUCKET) if processes > 1 else 0
            kept = Bytes(model.trained_bytes, whole.gradients + sent, whole.state)
            whole = Bytes(whole.weights - model.trained_bytes, 0, 0)
            gathered *= 1 - share
        if self.cpu_offload:
            return kept._replace(weights=kept.weights + gathered)
        gathered = gathered if size > 1 else 0
        own = Bytes(whole.weights / size + gathered, whole.gradients / size, whole.state / size)
        return Bytes(*map(sum, zip(own, kept, strict=True)))

    def replicates(self, trained_share: float) -> bool:
        """Says whether what trains is whole on every process.

        Args:
            trained_share: Its bytes over those of the model.
        """
        return trained_share <= SMALL if self.replicate_trained is None else self.replicate_trained

    def backend(self, chosen: str, processes: int, nodes: int) -> str:
        """Has NCCL use copy engines where they are asked for, and sums norms of offloaded gradients with gloo."""
        sharing = self.shard_size or processes
        if self.copy_engines and sharing > 1:
            from harness.memory.strategy import copy_engines

            if chosen != "nccl":
                raise reject(copy_engines.KEY, "true", f"takes NCCL, and processes talk by {chosen}; set false")
            copy_engines.ask_nccl(sharing, processes // nodes)
        return HOST_AND_GPU if self.cpu_offload and chosen == "nccl" else chosen


@register("memory/strategy", Fsdp2Config)
def build(config: Fsdp2Config, ranks: "Ranks") -> "Parallel":
    """Makes Lightning's ModelParallelStrategy, and what splits a model.

    Args:
        config: Its settings.
        ranks: Of the run.

    Raises:
        UserError: The processes can not be put into groups of `shard_size`, nothing is reduced in `reduce_dtype`, or
            there is no GPU to offload from.
    """
    from functools import partial

    from lightning.pytorch.strategies import ModelParallelStrategy

    from harness.memory.strategy import fully_shard
    from harness.memory.strategy.parallel import Parallel
    from harness.trainer.reduction import average

    size = config.shard_size
    if size is not None and ranks.world_size % size:
        remedy = f"{ranks.world_size} processes do not make groups of it; give a divisor"
        raise reject("memory.strategy.shard_size", size, remedy)
    if config.cpu_offload and ranks.device_type != "cuda":
        raise reject("memory.strategy.cpu_offload", "true", "takes a GPU, and this run is on the CPU; leave it out")
    kind = fully_shard.Offloaded if config.cpu_offload else ModelParallelStrategy
    strategy = kind(
        data_parallel_size=ranks.world_size,
        tensor_parallel_size=1,
        save_distributed_checkpoint=True,
        # For one process, which has no group yet.
        process_group_backend=HOST_AND_GPU if config.cpu_offload else None,
    )
    settings = {key: value.name if isinstance(value, Enum) else value for key, value in asdict(config).items()}
    del settings["name"]
    settings["shard_size"] = size or ranks.world_size
    settings["replicate_trained"] = replicated = config.replicates(ranks.trained_share)
    if replicated and config.reduce_dtype is not None:
        remedy = (
            "what trains is whole on every process, and averaged as it is; set memory.strategy.replicate_trained=false"
        )
        raise reject("memory.strategy.reduce_dtype", config.reduce_dtype.name, remedy)
    return Parallel(
        strategy,
        {"strategy": "fsdp2", "processes": ranks.world_size, **settings},
        sharded=True,
        shard=partial(fully_shard.shard, config, replicated=replicated),
        root=lambda module, stepping: module,
        clip=fully_shard.clip,
        average=average if replicated and ranks.world_size > 1 else None,
        gradient=fully_shard.gradient,
        gather=fully_shard.gather,
    )
