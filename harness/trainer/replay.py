"""Takes an optimiser step anew that ran out of memory, in smaller pieces, with the same global loss.

    loss of a step = sum over its supervised tokens / their number, over micro-batches and ranks

so a micro-batch cut by rows adds the same gradients, up to rounding. A step that fails is rolled back whole: gradients,
random state, counts; its micro-batches are kept on the CPU until it is through. Weights and optimiser state have not
moved by then, for Lightning's update follows the last backward pass. With dropout a cut batch draws other masks than a
whole one would, of the same distribution, as all later steps then do; checkpointing draws the same.

On several ranks a rank that fails would leave the others waiting in DDP's reduction, which runs within the last
backward pass. So gradients stay local, ranks tell each other on the host whether all are through, and reduce then.

Lightning's loop over micro-batches is the only place that sees forward, backward and update fail alike, and can run
them again; a callback or a hook can not.
"""

import gc
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.loops.optimization.automatic import Closure, _AutomaticOptimization
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch import Tensor
from torch.optim import Optimizer

from harness.data.batch import Batch
from harness.data.cut import cut
from harness.errors import reject
from harness.model.compiled import forget_programs
from harness.trainer.flops import survey
from harness.trainer.module import Part, TrainingModule
from harness.trainer.reduction import Reduction

log = logging.getLogger(__name__)

_UPDATES_AT_ONCE = (torch.optim.AdamW, torch.optim.SGD)
"""Optimisers that allocate before they change a weight, or show in its version that they did."""


class _Failed(Exception):
    """The step has to be taken anew: some rank's micro-batch did not fit."""


@dataclass(slots=True)
class RandomState:
    """Random state of the CPU and of the module's GPU."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def of(cls, device: torch.device) -> "RandomState":
        """Reads the state; nothing waits for the GPU."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None, device)

    def restore(self) -> None:
        """Puts it back."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def watch(trainer: lightning.Trainer, module: TrainingModule) -> None:
    """Puts the replay into a trainer, as `trainer.oom_replay` asks for it.

    Raises:
        UserError: It was asked for, and the strategy or the optimiser does not allow it.
    """
    asked, reason = module.config.trainer.oom_replay, reason_against(trainer, module)
    if asked is False or (asked is None and (reason or trainer.world_size > 1)):
        return
    if reason:
        raise reject("trainer.oom_replay", "true", reason)
    trainer.fit_loop.epoch_loop.automatic_optimization = ReplayingOptimization(trainer)


def reason_against(trainer: lightning.Trainer, module: TrainingModule) -> str | None:
    """Returns why a failed step could not be rolled back, or a batch be tried on one rank alone; None where it can."""
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    if getattr(module.config.optim, "per_parameter", False):
        return "optim.per_parameter changes weights within the backward pass, which can not be taken back"
    if trainer.strategy.handles_gradient_accumulation or not isinstance(
        trainer.strategy, DDPStrategy | SingleDeviceStrategy
    ):
        return "ranks that split weights wait for one that fails within its forward pass; one process or ddp only"
    return None


class ReplayingOptimization(_AutomaticOptimization):
    """Runs micro-batches as Lightning does, and a step that fails as often as there is a remedy left."""

    def __init__(self, trainer: lightning.Trainer) -> None:
        super().__init__(trainer)
        self._batches: list[tuple[int, Batch]] = []
        """Index and micro-batch, on the CPU, of the step so far."""
        self._random: RandomState | None = None
        self._failure: str | None = None
        """Why a micro-batch of this rank did not fit, in this attempt."""
        self._failed: Batch | None = None
        self._reduction: Reduction | None = None
        self._before: _Update | None = None
        self._updates_failed = 0
        """In this step."""

    @property
    def _module(self) -> TrainingModule:
        module = self.trainer.lightning_module
        assert isinstance(module, TrainingModule)
        return module

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict) -> dict[str, Any]:
        """Runs a micro-batch; the last one of a step takes the step, and takes it anew until it is through."""
        module = self._module
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._batches, self._random, self._failure = [], RandomState.of(module.device), None
            self._updates_failed = 0
            module.meter.begin_step()
        batch = self.trainer.datamodule.current  # type: ignore[attr-defined]
        self._batches.append((batch_idx, batch))
        if self.trainer.fit_loop._should_accumulate():
            self._work(optimizer, batch_idx, batch, kwargs["batch"])
            return {}
        again = False
        while not self._step(optimizer, batch_idx, None if again else kwargs["batch"]):
            self._roll_back()
            again = True
            for earlier in self._batches[:-1]:
                self._work(optimizer, *earlier)
        self._batches = []
        return {}

    def _step(self, optimizer: Optimizer, batch_idx: int, sent: Batch | None) -> bool:
        """Runs the last micro-batch and the update; returns whether the step is done."""
        self._before = None

        def closure() -> Tensor:
            loss = self._work(optimizer, batch_idx, self._batches[-1][1], sent)
            if self._any_failed():
                raise _Failed
            assert loss is not None
            self._before = _Update(optimizer)
            return loss

        try:
            self._optimizer_step(batch_idx, closure)
        except _Failed:
            return False
        except torch.OutOfMemoryError as error:
            self._failure = str(error).splitlines()[0]
            if not self._update_undone(optimizer):
                raise
            return False
        return True

    def _work(self, optimizer: Optimizer, index: int, batch: Batch, sent: Batch | None = None) -> Tensor | None:
        """Runs a micro-batch forward and backward, in parts where it has to be; notes it where it does not fit."""
        if self._failure is not None:
            return None
        try:
            return self._run_parts(optimizer, index, batch, sent)
        except torch.OutOfMemoryError as error:
            self._failure, self._failed = str(error).splitlines()[0], batch
        # Not within the clause above: what is raised holds the frames, and with them the activations.
        return None

    def _run_parts(self, optimizer: Optimizer, index: int, batch: Batch, sent: Batch | None) -> Tensor:
        module, loss = self._module, None
        for part, (number, count) in self._parts(batch, sent):
            module.part = Part(number, count)
            kwargs = OrderedDict(batch=part, batch_idx=index)
            zero = self._make_zero_grad_fn(index, optimizer) if number == 0 else None
            work = Closure(self._make_step_fn(kwargs), self._make_backward_fn(optimizer), zero)
            with _block_parallel_sync_behavior(self.trainer.strategy, block=True):
                loss = work()
        module.part = Part(0, 1)
        assert loss is not None
        return loss

    def _parts(self, batch: Batch, sent: Batch | None) -> Iterator[tuple[Batch, Part]]:
        module = self._module
        count = module.relief.parts_of(batch)
        if count == 1:
            yield sent if sent is not None else batch.to(module.device, non_blocking=True), Part(0, 1)
            return
        visual: Any = module.tuned.base.model.visual
        for number, part in enumerate(cut(batch, count, visual.num_grid_per_side, visual.spatial_merge_size)):
            yield part.to(module.device), Part(number, count)

    def _any_failed(self) -> bool:
        """Returns whether a rank failed, the same on all of them; where none did, gradients are averaged over ranks."""
        if self.trainer.world_size == 1:
            return self._failure is not None
        if self._reduction is None:
            module = self._module
            self._reduction = Reduction([p for p in module.parameters() if p.requires_grad], module.ranks)
        if self._reduction.agree(self._failure is not None):
            return True
        self._reduction.average()
        return False

    def _update_undone(self, optimizer: Optimizer) -> bool:
        """Returns whether an update that ran out of memory left all as it was, and makes that so for new state."""
        before, self._updates_failed = self._before, self._updates_failed + 1
        if before is None or self.trainer.world_size > 1 or self.trainer.precision == "16-mixed":
            return False
        # No smaller micro-batch helps an update, only that what the allocator had cached is free: once.
        return self._updates_failed == 1 and before.undo(optimizer)

    def _roll_back(self) -> None:
        """Puts all back to where the step began, takes a measure on the rank that failed, and says so."""
        module, trainer = self._module, self.trainer
        for parameter in module.parameters():
            parameter.grad = None
        assert self._random is not None
        self._random.restore()
        module.meter.rewind()
        module.channel_loss.clear()
        module.part = Part(0, 1)
        for progress in (self.optim_progress.optimizer.step.total, self.optim_progress.optimizer.step.current):
            progress.ready = progress.completed
        reason, failed = self._failure, self._failed
        self._failure = self._failed = None
        measure = "another rank took a measure" if reason is None else self._measure(failed, reason)
        gc.collect()
        if module.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "step %d: out of memory (%s); rolled back and taken anew: %s",
            trainer.global_step + 1,
            reason or "on another rank",
            measure,
        )

    def _measure(self, failed: Batch | None, reason: str) -> str:
        module = self._module
        if failed is None:
            return "what was cached is freed"
        done = module.relief.increase(failed, module.tuned.base)
        if done is None:
            length = failed.input_ids.shape[1]
            raise torch.OutOfMemoryError(
                f"{reason}; nothing is left to do: a micro-batch is a row ({length:,} tokens) "
                "and all layers are checkpointed; lower data.max_length or data.packing_length, or take tuner=lora"
            )
        if module.relief.checkpoints_all:
            forget_programs()
            module.meter.costs = survey(module.tuned.base)
        return done


class _Update:
    """Where weights and optimiser state stood before an update, by their versions."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._known = isinstance(optimizer, _UPDATES_AT_ONCE)
        self._had_state = set(optimizer.state) if self._known else set()
        self._versions = _versions(optimizer, self._had_state) if self._known else []

    def undo(self, optimizer: Optimizer) -> bool:
        """Drops state that is new; returns whether nothing else has changed, the optimiser being one that tells."""
        if not self._known or _versions(optimizer, self._had_state) != self._versions:
            return False
        for parameter in [p for p in optimizer.state if p not in self._had_state]:
            del optimizer.state[parameter]
        return True


def _versions(optimizer: Optimizer, with_state: set[Any]) -> list[int]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = [value for p in with_state for value in optimizer.state[p].values() if isinstance(value, Tensor)]
    return [tensor._version for tensor in (*parameters, *state)]
