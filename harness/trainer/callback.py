"""What happens between optimiser steps, in one fixed order: record, validate, save.

The order matters for an exact resume: a checkpoint that follows the validation of its step is never resumed into a
run that skips that validation.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch

from harness.data.datamodule import DataModule
from harness.errors import UserError
from harness.experiment.folder import RunFolder
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.evaluate import Evaluator
from harness.trainer.kept_batch import write as keep_batch
from harness.trainer.loss_check import DivergedError
from harness.trainer.module import TrainingModule
from harness.trainer.recorder import Recorder
from harness.trainer.standard import StandardConfig, badness
from harness.trainer.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Best:
    """The best validation so far."""

    metric: str
    value: float | None = None
    step: int | None = None

    def update(self, value: float, step: int) -> bool:
        """Takes a new value and says whether it is the best: lower for a loss, higher for all else; NaN never."""
        if not math.isfinite(value):
            return False
        if self.value is not None and badness(self.metric, value) >= badness(self.metric, self.value):
            return False
        self.value, self.step = value, step
        return True


@dataclass(slots=True)
class Progression:
    """What the run has come to: filled while it trains, read for the summary."""

    best: Best
    baseline: dict[str, float] = field(default_factory=dict)
    """Metrics before the first step."""
    val: dict[str, float] = field(default_factory=dict)
    """Metrics of the last validation."""
    train_loss: float | None = None
    memory: dict[str, float] = field(default_factory=dict)
    """Peak GPU memory at the last reading; Lightning moves the model off the GPU when it ends."""
    first_step_at: float | None = None
    """Clock reading (`time.monotonic()`) at the end of the first optimiser step."""
    last_step_at: float | None = None
    """The same of the last one."""


class BetweenSteps(lightning.Callback):
    """Drives recorder, evaluator and checkpointer."""

    def __init__(
        self,
        config: StandardConfig,
        folder: RunFolder,
        data: DataModule,
        recorder: Recorder,
        evaluator: Evaluator | None,
        checkpointer: Checkpointer,
        progression: Progression,
        watchdog: Watchdog,
    ) -> None:
        """Args: the trainer config, the run folder and the parts; no evaluator means no validation rows."""
        self.data = data
        self.folder = folder
        self.recorder = recorder
        self.evaluator = evaluator
        self.checkpointer = checkpointer
        self.progression = progression
        self.watchdog = watchdog
        self.log_every = config.log_every_steps
        self.val_every = config.val_every_steps or data.steps(1, config.world_size)
        self.save_every = config.save_every_steps or self.val_every
        self.val_at_start = config.val_at_start
        self.checkpoints = config.checkpoints
        self._last_step = 0
        self._origins: list[str] = []
        """Of the step so far."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measures the untrained model, unless the run goes on from a checkpoint."""
        assert isinstance(pl_module, TrainingModule)
        self._last_step = trainer.global_step
        # On several ranks, who started them has the Ctrl-C, and interrupts those that outlive one that fails.
        pl_module.stop.install(interactive=trainer.world_size == 1)
        with pl_module.meter.paused():
            if self._last_step == 0 and self.val_at_start and self.evaluator is not None:
                self.progression.baseline = self._evaluate(trainer, pl_module, 0)
                self.recorder.write_start(self.progression.baseline)
        self.watchdog.start()
        self.watchdog.begin("waiting for a batch")

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Times this micro-batch, but for those of the first step, which compile."""
        if self.progression.first_step_at is None:
            self.watchdog.pause()
        else:
            self.watchdog.begin(f"a micro-batch of step {self._last_step + 1}")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Acts when this micro-batch completed an optimiser step."""
        assert isinstance(pl_module, TrainingModule)
        self._after_batch(trainer, pl_module, batch)
        self.watchdog.begin(f"waiting for a batch after step {trainer.global_step}")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Waits for nothing any more."""
        self.watchdog.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leaves the end to the error."""
        self.watchdog.stop()

    def _after_batch(self, trainer: lightning.Trainer, pl_module: TrainingModule, batch: Any) -> None:
        step = trainer.global_step
        self._origins += batch.origins
        if step == self._last_step:
            return
        self._last_step = step
        self._record(pl_module, step)
        self.checkpointer.poll()
        last = step == pl_module.total_steps
        if trainer.world_size == 1:
            pl_module.stop.agree(int(pl_module.stop.number is not None))
        leaves = pl_module.stop.agreed and not last
        validate = self.evaluator is not None and (last or step % self.val_every == 0)
        save = self.checkpoints and (last or leaves or step % self.save_every == 0)
        if not (last or leaves or validate or save or self.recorder.num_pending >= self.log_every):
            return
        interval = pl_module.meter.end_interval(self.data.take_wait_seconds(), pl_module.ranks.means)
        self.progression.memory = peak_memory(pl_module.device)
        figures = self.progression.memory | pl_module.meter.metrics(interval) | self._cache_figures()
        figures |= self.checkpointer.figures()
        try:
            self.progression.train_loss = self.recorder.flush(interval, figures)
        except DivergedError as error:
            self.watchdog.pause()
            self._keep_batch(trainer, error.step)
            raise
        self.watchdog.pause()
        with pl_module.meter.paused():
            metrics = self._evaluate(trainer, pl_module, step) if validate else {}
            if (monitor := self.progression.best.metric) in metrics:
                pl_module.after_validation(badness(monitor, metrics[monitor]))
            self.recorder.commit(metrics)
            best = self._is_best(metrics, step)
            if save or (best and self.checkpoints):
                self.checkpointer.save(trainer, step, best=best)
        if trainer.is_global_zero:
            self.folder.write_status(last_step=step)
        if leaves:
            self.checkpointer.wait()
            pl_module.stop.leave()

    def _record(self, module: TrainingModule, step: int) -> None:
        assert module.grad_norm is not None
        sums = module.channel_loss.take(module.device)
        origins, self._origins = self._origins, []
        self.recorder.step(step, module.meter.end_step(), module.grad_norm, module.learning_rates, sums, origins)
        self.progression.last_step_at = time.monotonic()
        if self.progression.first_step_at is None:
            self.progression.first_step_at = self.progression.last_step_at

    def _keep_batch(self, trainer: lightning.Trainer, step: int) -> None:
        """Writes what this rank had in a step into the run folder. An error is on its way: another is only logged."""
        rank = trainer.global_rank
        path = self.folder.path / "nonfinite" / f"step_{step}_rank_{rank}.safetensors"
        try:
            keep_batch(path, step, self.data.step_batches(step, rank, trainer.world_size))
        except (OSError, UserError) as error:
            log.error("the batch of step %d can not be kept: %s", step, error)
            return
        log.error("step %d: its batch is kept; python -m harness.trainer.kept_batch %s shows it", step, path)

    def _evaluate(self, trainer: lightning.Trainer, module: TrainingModule, step: int) -> dict[str, float]:
        assert self.evaluator is not None
        self.progression.val = self.evaluator.run(trainer, module, step)
        self._cache_figures()  # those of validation are in the summary alone
        return self.progression.val

    def _cache_figures(self) -> dict[str, float]:
        return self.data.features.take() if self.data.features is not None else {}

    def _is_best(self, metrics: dict[str, float], step: int) -> bool:
        best = self.progression.best
        return best.metric in metrics and best.update(metrics[best.metric], step)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Returns peak allocated and reserved GPU memory in GiB since the process began, or nothing on the CPU."""
    if device.type != "cuda":
        return {}
    return {
        "memory/peak_allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "memory/peak_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }
