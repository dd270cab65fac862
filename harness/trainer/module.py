"""The LightningModule: one loss that is right under accumulation and across ranks, and small checkpoints.

The loss of an optimiser step is the sum over all its supervised tokens divided by their number, over micro-batches and
ranks. Averaging per micro-batch instead weights a token by how few others its micro-batch holds (Lightning #20350).
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from harness.config import RunConfig
from harness.data.batch import Batch
from harness.errors import reject
from harness.memory.strategy.parallel import Parallel
from harness.model.forward import token_losses
from harness.optim.group import learning_rates, parameter_groups, sizes
from harness.optim.plateau import tell
from harness.optim.schedule import build_schedule
from harness.registry import build
from harness.trainer.channel_loss import ChannelLoss
from harness.trainer.flops import survey
from harness.trainer.gradient_check import GradientCheck
from harness.trainer.host_group import HostGroup
from harness.trainer.meter import Meter, Totals
from harness.trainer.relief import Relief
from harness.trainer.skip import Skipped, leave_out_nonfinite, skips_on_device
from harness.trainer.standard import OnNonfinite
from harness.trainer.stop import Stop
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Which part of a micro-batch that was cut (`harness.trainer.replay`) a training step gets."""

    number: int
    """From 0."""
    parts: int


class TrainingModule(lightning.LightningModule):
    """Trains what the tuner marked as trainable."""

    strict_loading = False
    """Checkpoints hold trainable weights only; the frozen ones come from the base checkpoint."""

    def __init__(self, tuned: Tuned, config: RunConfig, total_steps: int, parallel: Parallel | None = None) -> None:
        """Takes the model as it is to train.

        Args:
            tuned: The tuned model.
            config: The whole run's.
            total_steps: Its number of optimiser steps.
            parallel: What its strategy asks for; None: nothing.
        """
        super().__init__()
        self.parallel = parallel or Parallel()
        self.trainable_names = frozenset(name for name, p in tuned.model.named_parameters() if p.requires_grad)
        """What the tuner marked: an optimiser that trains layers in turn may unmark some for a while."""
        # transformers loads in evaluation mode, and Lightning leaves modes alone.
        self.model = tuned.model.train()
        self.tuned = tuned
        self.config = config
        self.total_steps = total_steps
        self.lr = config.optim.lr or tuned.default_lr
        self.meter = Meter(costs=survey(tuned.base))
        self.channel_loss = ChannelLoss(config.data.channels)
        self.relief = Relief()
        self.stop = Stop()
        self.part = Part(0, 1)
        self.grad_norm: Tensor | None = None
        self.learning_rates: dict[str, float] = {}
        self._skips = config.trainer.on_nonfinite is OnNonfinite.skip
        self._gradient_check = GradientCheck(self.model, self.parallel.gradient)
        self._trains_vision = any(p.requires_grad for p in tuned.base.model.visual.parameters())
        trains_vit = any(p.requires_grad for p in tuned.base.model.visual.blocks.parameters())
        self.splits_vit = self.parallel.sharded and (trains_vit or not config.memory.strategy.keeps_frozen_vit)
        """Whether the ranks share its weights: all have to run it, or those that do wait."""
        self._is_split = False
        self._ends_step = True
        self._step_tokens = 0
        self._rng: dict[str, Any] | None = None

    def configure_model(self) -> None:
        """Splits the weights over the ranks where the strategy does."""
        if self.parallel.shard is not None and not self._is_split:
            self.parallel.shard(self)
            self._is_split = True

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function. What a strategy hangs on calls of this module then goes on around it."""
        return function(*args)

    def within(self, function: Callable[..., Any], *args: Any, stepping: bool = False) -> Any:
        """Calls a function that runs the model, with all weights there that it looks at.

        Args:
            function: Runs the model or modules of it.
            args: Its arguments.
            stepping: Whether Lightning is in a training step.
        """
        root = self.parallel.root(self, stepping)
        return function(*args) if root is None else root(function, *args)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the micro-batch's share of the step's loss, scaled for Lightning's and DDP's averaging."""
        accumulate = self.trainer.accumulate_grad_batches
        self._ends_step = (batch_idx + 1) % accumulate == 0
        if batch_idx % accumulate == 0 and self.part.number == 0:
            counted, asked = self.ranks.sums(batch.step_supervised, int(self.stop.number is not None))
            self.stop.agree(asked)
            # Ranks that share a batch all count it, and each has the loss of its own slice.
            self._step_tokens = counted // self.config.memory.sequence_parallel
            if self.config.optim.skips_parameters:
                self.meter.costs = survey(self.tuned.base)
        # Where the vision side trains, a step of text gives it zeros and not nothing, on one process as on several:
        # an optimiser skips a parameter without gradient, but decays and moves one with zeros.
        see = self._trains_vision or self.splits_vit
        noise_alpha = self.config.trainer.neftune_alpha or 0.0
        summed, each_K = self.within(token_losses, self.tuned.base, batch, see, noise_alpha, stepping=True)
        loss = summed / max(self._step_tokens, 1)
        self.meter.add(batch, loss.detach())
        self.channel_loss.add(each_K, batch)
        loss = loss * (accumulate * self.trainer.world_size * (accumulate if self.parallel.divides_loss else 1))
        # Once a step after the averages over micro-batches and ranks, and no part of the loss that is reported.
        return loss if self.tuned.regularizer is None else loss + self.tuned.regularizer() / self.part.parts

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Builds the optimiser and a schedule that moves once per optimiser step.

        Raises:
            UserError: The optimiser finds nothing to work on, or updates within a backward pass of scaled gradients.
        """
        if getattr(self.config.optim, "per_parameter", False) and self.trainer.precision == "16-mixed":
            raise reject(
                "optim.per_parameter", True, "would use the scaled gradients of fp16; set memory.precision=bf16"
            )
        groups = parameter_groups(self.model, self.config.optim, self.lr, self.tuned.lr_scales)
        log.info("optimizer groups: %s", sizes(groups))
        optimizer = build("optim", self.config.optim, groups)
        schedule = build_schedule(optimizer, self.config.optim.schedule, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the step's learning rates, averages gradients where the backward pass has not, and looks at the first.

        Raises:
            UserError: A component that should train got no gradient.
        """
        self.learning_rates = learning_rates(optimizer.param_groups)
        if self.parallel.average is not None:
            self.parallel.average([p.grad for p in _trained(optimizer) if p.grad is not None])
        if not self._ends_step:
            # DeepSpeed takes its steps by itself, and is called for each micro-batch.
            return
        if not self._gradient_check.is_done:
            # All ranks look at the same components, where a look is a sum over ranks.
            (seen,) = self.ranks.sums(int(self.meter.step_has_images))
            self._gradient_check.check(step_has_images=seen > 0, freed=_freed_norms(optimizer))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step, then lets the tuner act on it while the gradients are still there; not if it is skipped."""
        try:
            super().optimizer_step(*args, **kwargs)
        except Skipped:
            return
        if self.parallel.norm is not None and self._ends_step:
            self.grad_norm = torch.tensor(self.parallel.norm(), device=self.device)
        if self.tuned.after_step is not None:
            # Lightning counts the step when this returns.
            self.tuned.after_step(self.trainer.global_step + 1)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Shows the model as it is used, see `settle`, for a while."""
        self.settle()
        try:
            yield
        finally:
            for optimizer in self.averaging_optimizers():
                optimizer.train()
            self.model.train()

    def settle(self) -> None:
        """Puts the model into evaluation mode, with averaged weights where the optimiser keeps an average."""
        self.model.eval()
        for optimizer in self.averaging_optimizers():
            optimizer.eval()

    def averaging_optimizers(self) -> list[Any]:
        """Returns the optimisers whose weights to use are not those that they train."""
        return [item for item in self.trainer.optimizers if hasattr(item, "eval") and hasattr(item, "train")]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clips by global norm and keeps the norm from before clipping, on the device.

        Raises:
            Skipped: The step's update is to be left out.
        """
        limit = self.config.optim.max_grad_norm or math.inf
        norm = self.parallel.clip([p for p in _trained(optimizer) if p.grad is not None], limit)
        if norm is None:
            return
        norm = norm.to(self.device)
        freed = [length.to(norm) for length in _freed_norms(optimizer).values()]
        self.grad_norm = torch.linalg.vector_norm(torch.stack([norm, *freed])) if freed else norm
        # A gradient scaler leaves such steps out by itself.
        if self._skips and self.trainer.precision != "16-mixed":
            on_device = self.tuned.after_step is None and skips_on_device(optimizer)
            loss, world_size = self.meter.step_loss, self.trainer.world_size
            leave_out_nonfinite(optimizer, loss, self.grad_norm, world_size, on_device=on_device)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns trainable weights only."""
        trainable = {f"model.{name}" for name in self.trainable_names}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trainable}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds every rank's random state and the counts so far: tensors and numbers, which `weights_only` loads."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        states: list[Any] = [{"cpu": torch.get_rng_state(), "cuda": cuda}]
        if self.trainer.world_size > 1:
            states = states * self.trainer.world_size
            torch.distributed.all_gather_object(states, states[self.global_rank])
        checkpoint["rng"], checkpoint["totals"] = states, asdict(self.meter.total)
        checkpoint["data_ranks"] = self.config.data_ranks
        checkpoint["relief"] = asdict(self.relief)
        if self.tuned.state is not None:
            checkpoint["tuner"] = self.tuned.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random state until the first batch: what runs before it draws numbers too."""
        if self.tuned.load_state is not None:
            self.tuned.load_state(checkpoint["tuner"])
        # Strategies that write a folder read weights by themselves, each rank its own.
        missing = set(self.state_dict()) - set(checkpoint["state_dict"]) if "state_dict" in checkpoint else set()
        if missing:
            raise RuntimeError(
                f"the checkpoint lacks {len(missing)} trainable weights, {sorted(missing)[0]} among them"
            )
        before, now = len(checkpoint["rng"]), self.trainer.world_size
        totals, readers = checkpoint["totals"], checkpoint.get("data_ranks", before)
        if before == now:
            self._rng = checkpoint["rng"][self.global_rank]
        else:
            log.info("goes on with %d processes in the place of %d: dropout draws other numbers", now, before)
        if (ranks := self.config.data_ranks) != readers:
            # Of one rank, as if there had been as many as now.
            totals = {key: value if key == "steps" else value * readers / ranks for key, value in totals.items()}
        self.meter.total = Totals(**totals)
        self.relief = Relief(**checkpoint.get("relief", {}))
        if self.relief.checkpoints_all:
            self.relief.apply(self.tuned.base)

    def on_train_end(self) -> None:
        """Lets the first rank count the rows that the others had to leave out."""
        if self.trainer.world_size > 1:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            data.gather_left_out()

    def on_fit_start(self) -> None:
        """Gives each rank dropout of its own: all were seeded alike, to build the same model."""
        if self.global_rank > 0:
            torch.manual_seed(self.config.seed + self.global_rank)

    def on_train_start(self) -> None:
        """Sets the rates of the first step from the schedule, which a longer resumed run has stretched."""
        self._set_rates()

    def after_validation(self, badness: float) -> None:
        """Tells a schedule that waits for progress how a validation went (lower is better), before the next step."""
        if tell(self.trainer.lr_scheduler_configs[0].scheduler, badness):  # type: ignore[arg-type]
            log.info("step %d: no progress for a while, learning rates fall", self.trainer.global_step)
            self._set_rates()

    def _set_rates(self) -> None:
        optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.trainer.global_step)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Puts the random state back on the first batch after a resume."""
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if self._rng["cuda"] is not None:
                torch.cuda.set_rng_state(self._rng["cuda"], self.device)
            self._rng = None

    @cached_property
    def ranks(self) -> HostGroup:
        """All ranks of the run, for what their hosts tell each other; first asked for by all together."""
        return HostGroup(self.trainer.world_size)


def _trained(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """Yields the optimiser's own parameters: to walk through all modules takes longer than to clip."""
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _freed_norms(optimizer: torch.optim.Optimizer) -> Mapping[nn.Parameter, Tensor]:
    """Returns the norms of the gradients that an optimiser used within this step's backward pass and freed."""
    return getattr(optimizer, "freed", {})
