"""DeepSpeed's engine under Lightning: how it is started and left, and how to look at what it splits."""

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, set_z3_leaf_module
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from harness.errors import reject
from harness.memory.strategy import build_lock
from harness.memory.strategy.parallel import Weight, replace_weights
from harness.model.block import FOLLOWS_INPUT
from harness.model.loss import GATHERS

if TYPE_CHECKING:
    from harness.trainer.module import TrainingModule


_LINEAR = torch.nn.functional.linear
"""torch's own: DeepSpeed puts its function there no earlier than with a first stage 3."""


class Zero(DeepSpeedStrategy):
    """Lightning's strategy, with what the model has to know before DeepSpeed splits it."""

    name: str
    """On the command line."""
    keeps: Callable[[Weight], bool] | None
    """Says which weights are whole from behind one step to behind the next, beside those of DeepSpeed's choice."""

    def setup_environment(self) -> None:
        """Starts the process group.

        Raises:
            UserError: The run is on the CPU.
        """
        if not isinstance(self.accelerator, CUDAAccelerator):
            remedy = "takes GPUs, and this run is on the CPU; use memory/strategy=ddp or fsdp2"
            raise reject("memory/strategy", self.name, remedy)
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Has layers and blocks gathered whole, and the loss call the head once a micro-batch on all ranks."""
        module: Any = self.lightning_module
        setattr(module.model.lm_head, GATHERS, True)
        towers = module.tuned.base.model
        text, vision = towers.language_model, towers.visual
        for tower, blocks in ((text, text.layers), (vision, vision.blocks)) if module.parallel.sharded else ():
            # Gradients of such a module count as complete when its input's is: without one they would at once.
            setattr(tower, FOLLOWS_INPUT, True)
            for block in blocks:
                # Else DeepSpeed hangs on every module within, and gathers weight by weight.
                set_z3_leaf_module(block, True)
        super().setup(trainer)
        if module.parallel.sharded:
            chosen = [p for p in module.parameters() if self.keeps is not None and self.keeps(_known(p))]
            keep_whole(chosen, self.deepspeed_engine.optimizer.persistent_parameters)

    def teardown(self) -> None:
        """Gives the process torch's linear function back, which stage 3 puts another in the place of."""
        torch.nn.functional.linear = _LINEAR
        super().teardown()


def make(name: str, settings: dict[str, Any], keeps: Callable[[Weight], bool] | None) -> Zero:
    """Makes the strategy.

    Args:
        name: See `Zero`.
        settings: DeepSpeed's, complete.
        keeps: See `Zero`.
    """
    build_lock.use()
    # The hook measures the norm, and leaves clipping to DeepSpeed.
    warnings.filterwarnings("ignore", "Since DeepSpeed handles gradient clipping internally")
    warnings.filterwarnings("ignore", "When saving the DeepSpeed Stage 3 checkpoint")
    strategy = Zero(config=settings, exclude_frozen_parameters=True, logging_level=logging.WARNING)
    strategy.name, strategy.keeps = name, keeps
    return strategy


def _known(parameter: Any) -> Weight:
    return Weight(parameter.ds_numel, len(parameter.ds_shape), parameter.requires_grad)


def keep_whole(parameters: Iterable[Any], persistent: list[Any]) -> None:
    """Adds to the weights that no layer lets go of, and has those gathered at once after a step.

    DeepSpeed knows them by their size alone, and gathers one by one.

    Args:
        parameters: What is added, where it is not there.
        persistent: DeepSpeed's list; changed.
    """
    for parameter in parameters:
        if not parameter.ds_persist:
            parameter.ds_persist = True
            persistent.append(parameter)
    if not persistent:
        return
    first, one_by_one = persistent[0], persistent[0].all_gather

    def gather(param_list: list[Any] | None = None, **options: Any) -> Any:
        if param_list is not persistent:
            return one_by_one(param_list, **options)
        split = [p for p in persistent if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        for p in split:
            if p.requires_grad:
                # A node's own copy (hpz) is of before the step.
                p.ds_secondary_tensor = None
        for has_copy in (False, True):
            if share := [p for p in split if (p.ds_secondary_tensor is not None) is has_copy]:
                first.all_gather_coalesced(share).wait()
        return None

    first.all_gather = gather


def root(module: "TrainingModule", stepping: bool) -> nn.Module | None:
    """Returns DeepSpeed's engine, which gathers weights that are looked at; in a step it is there already."""
    return None if stepping else module.trainer.model


def norm(strategy: Zero) -> float:
    """Returns the gradients' global norm of the last step, from before clipping."""
    found = strategy.deepspeed_engine.get_global_grad_norm()
    return float("nan") if found is None else float(found)


def gradient(parameter: nn.Parameter) -> Tensor | None:
    """Returns the whole gradient, on every rank."""
    return safe_get_full_grad(parameter)


def gather(module: "TrainingModule") -> None:
    """Gives the first rank whole weights, on the CPU; what trains in float32."""
    replace_weights(module, _whole, keep=module.global_rank == 0)


def _whole(parameter: Any) -> Tensor:
    if parameter.requires_grad and (master := safe_get_full_fp32_param(parameter)) is not None:
        return master
    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()
