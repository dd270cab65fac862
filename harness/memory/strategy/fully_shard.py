"""What FSDP2 does to a model: splits it, clips over shards, and puts it together again."""

from collections import defaultdict
from collections.abc import Sequence, Set
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from harness.errors import reject
from harness.memory.strategy.copy_engines import CopyEngineAllGather
from harness.memory.strategy.parallel import replace_weights

if TYPE_CHECKING:
    from harness.memory.strategy.fsdp2 import Fsdp2Config, ShardType
    from harness.trainer.module import TrainingModule


class Offloaded(ModelParallelStrategy):
    """Lightning's strategy, which puts everything on the GPU, for shards that stay in the host's memory."""

    def model_to_device(self) -> None:
        """Moves what is not split."""
        module: Any = self.model
        for tensor in chain(module.parameters(), module.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(self.root_device)


def shard(config: "Fsdp2Config", module: "TrainingModule", *, replicated: bool) -> None:
    """Splits the weights over the processes, in place: layers and blocks one by one, the rest as one group.

    Args:
        config: Settings.
        module: On which Lightning has set a mesh.
        replicated: Leave what trains as it is, equal on all processes.

    Raises:
        UserError: The model has parameters that can not be split.
    """
    towers: Any = module.tuned.base.model
    in_turn = [list(towers.language_model.layers), list(towers.visual.blocks) if module.splits_vit else []]
    every = list(chain.from_iterable(in_turn))
    trained = [p for name, p in module.tuned.model.named_parameters() if replicated and name in module.trainable_names]
    kept = {*trained, *(() if module.splits_vit else towers.visual.blocks.parameters())}
    if kept.issuperset(module.parameters()):
        raise reject("memory.strategy.replicate_trained", "true", "leaves nothing to split; use memory/strategy=ddp")
    _check(module, every, kept)
    mesh = _mesh(config, module)
    for parameter in trained:
        parameter.data = parameter.data.to(mesh.device_type)
        dist.broadcast(parameter.detach(), src=0)
    options: dict[str, Any] = {
        "mesh": mesh,
        "ignored_params": kept,
        "offload_policy": CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy(),
    }
    param_dtype, reduce_dtype = _dtype(config.param_dtype), _dtype(config.reduce_dtype)
    for blocks in in_turn:
        for block in blocks:
            policy = _policy(param_dtype or _smaller(module, block), reduce_dtype, block)
            fully_shard(block, **options, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
        for block, following in pairwise(blocks):
            # Asked for before a block runs and not after, for a host that is hardly ahead of its GPU.
            block.set_modules_to_forward_prefetch([following])
    # Needed from the first operation of a step to the last.
    outermost = _policy(param_dtype, reduce_dtype, module)
    fully_shard(module, **options, mp_policy=outermost, reshard_after_forward=False)
    group = mesh.get_group(mesh.ndim - 1)
    if config.copy_engines and group.size() > 1:
        # Not what is gathered once a step, while nothing computes.
        gathering = CopyEngineAllGather(group)
        for block in every:
            block.set_custom_all_gather(gathering)


def clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scales gradients down to a global norm, over all shards, and returns what theirs was."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit).detach()
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gradient(parameter: nn.Parameter) -> Tensor | None:
    """Returns the whole gradient, on every rank."""
    grad: Any = parameter.grad
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def gather(module: "TrainingModule") -> None:
    """Gives the first rank whole weights, on the CPU, without what `fully_shard` put around the model."""
    replace_weights(module, _whole, keep=module.global_rank == 0)
    for part in list(module.modules()):
        if isinstance(part, FSDPModule):
            # fully_shard makes a class of FSDPModule and the module's own.
            part.__class__ = type(part).__bases__[1]


def _whole(parameter: Any) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _mesh(config: "Fsdp2Config", module: "TrainingModule") -> DeviceMesh:
    mesh: Any = module.device_mesh
    if config.shard_size is None or config.shard_size == mesh.size():
        return mesh["data_parallel"]
    shape = mesh.size() // config.shard_size, config.shard_size
    return init_device_mesh(mesh.device_type, shape, mesh_dim_names=("copy", "shard"))


def _smaller(module: "TrainingModule", block: nn.Module) -> torch.dtype | None:
    """Returns the type that a block's weights can be gathered in, where it is smaller than theirs.

    Adapters stay as they are: they are small, and magnitudes and scales need what bits they have.
    """
    if module.trainer.precision != "bf16-mixed" or module.tuned.adapter:
        return None
    return torch.bfloat16 if any(p.dtype == torch.float32 for p in block.parameters()) else None


def _policy(
    param_dtype: torch.dtype | None, reduce_dtype: torch.dtype | None, block: nn.Module
) -> MixedPrecisionPolicy:
    """Returns the types in which a block's weights travel, its gradients in that of the weights where none is given."""
    trained = {parameter.dtype for parameter in block.parameters() if parameter.requires_grad}
    if reduce_dtype is None and param_dtype is not None and len(trained) == 1:
        (reduce_dtype,) = trained
    return MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)


def _dtype(kind: "ShardType | None") -> torch.dtype | None:
    return None if kind is None else getattr(torch, kind.name)


def _check(module: "TrainingModule", blocks: Sequence[nn.Module], kept: Set[nn.Parameter]) -> None:
    shared = _shared(module, blocks)
    for name, parameter in module.tuned.model.named_parameters():
        if parameter in kept:
            continue
        reason = None
        # Integers are a quantised base's bits, which nothing casts.
        if parameter.is_floating_point() and parameter.dtype.itemsize == 1:
            reason = f"may cast weights of 8 bits, and {name} is {parameter.dtype}"
        elif parameter.ndim == 0:
            reason = f"can not split {name}, a single number"
        elif id(parameter) in shared:
            reason = f"gives each layer weights of its own, and layers share {name}"
        elif parameter._backward_hooks:
            reason = f"puts other weights in the place of {name}, without the hook that changes its gradient"
        if reason is not None:
            raise reject("memory/strategy", "fsdp2", f"{reason}; use memory/strategy=ddp")


def _shared(module: nn.Module, blocks: Sequence[nn.Module]) -> set[int]:
    """Returns the ids of parameters that two blocks have, or one and what is outside of them."""
    within = {id(part) for block in blocks for part in block.modules()}
    outside = [
        parameter for part in module.modules() if id(part) not in within for parameter in part.parameters(recurse=False)
    ]
    owners: dict[int, set[int]] = defaultdict(set)
    for number, parameters in enumerate([outside, *(block.parameters() for block in blocks)]):
        for parameter in parameters:
            owners[id(parameter)].add(number)
    return {key for key, numbers in owners.items() if len(numbers) > 1}
