"""Tries the largest batches that are planned before the first step, so that what does not fit shows at once.

Gradients of one batch are there while the next runs, as in accumulation, and where the optimiser has no state yet its
size is held. Random state, gradients, counts and the place in the data are afterwards what they were.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch

from harness.data.batch import Batch
from harness.data.cut import cut
from harness.data.datamodule import DataModule
from harness.errors import reject
from harness.model.compiled import forget_programs
from harness.model.forward import token_losses
from harness.trainer.module import TrainingModule
from harness.trainer.replay import RandomState, ReplayingOptimization, reason_against

log = logging.getLogger(__name__)


class Probe(lightning.Callback):
    """Runs once, where training starts."""

    def __init__(self, data: DataModule) -> None:
        """Args: the run's data, prepared."""
        self.data = data

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tries the batches on every rank.

        Raises:
            UserError: One does not fit, and no replay is there to cut it.
        """
        assert isinstance(pl_module, TrainingModule)
        if reason := reason_against(trainer, pl_module):
            raise reject("trainer.probe", "true", reason)
        training = self.data.largest_planned(trainer.global_rank, trainer.world_size)
        if not training:
            log.warning("trainer.probe: a stream does not say which batch is its largest; none is tried")
        random = RandomState.of(pl_module.device)
        try:
            with pl_module.meter.paused(), _held_state(trainer, pl_module):
                for batch in [*training, *training[:1]]:
                    self._train(trainer, pl_module, batch)
                self._validate(trainer, pl_module)
        finally:
            for parameter in pl_module.parameters():
                parameter.grad = None
            random.restore()
            _release(pl_module.device)

    def _train(self, trainer: lightning.Trainer, module: TrainingModule, batch: Batch) -> None:
        while (reason := _fits(trainer, module, batch)) is not None:
            _release(module.device)
            replays = isinstance(trainer.fit_loop.epoch_loop.automatic_optimization, ReplayingOptimization)
            done = module.relief.increase(batch, module.tuned.base) if replays else None
            if done is None:
                remedy = f"{_words(batch)} do not fit ({reason}); lower it, or take memory=auto"
                raise reject("trainer.batch_size", module.config.trainer.batch_size, remedy)
            if module.relief.checkpoints_all:
                forget_programs()
            log.warning("trainer.probe: %s do not fit (%s): %s", _words(batch), reason, done)
        log.info("trainer.probe: training batch, %s: fits%s", _words(batch), _peak(module.device))

    def _validate(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        batch = self.data.largest_val(trainer.global_rank, trainer.world_size)
        if batch is None:
            return
        size, reason = module.config.trainer.val_batch_size, None
        try:
            with module.evaluating(), torch.inference_mode(), trainer.precision_plugin.forward_context():
                token_losses(module.tuned.base, batch.to(module.device))
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        if reason is not None:
            raise reject("trainer.val_batch_size", size, f"{_words(batch)} do not fit ({reason}); lower it")
        log.info("trainer.probe: validation batch, %s: fits%s", _words(batch), _peak(module.device))


def _fits(trainer: lightning.Trainer, module: TrainingModule, batch: Batch) -> str | None:
    """Runs a batch forward and backward, cut as a step would cut it; returns why it does not fit."""
    visual: Any = module.tuned.base.model.visual
    count = module.relief.parts_of(batch)
    parts = cut(batch, count, visual.num_grid_per_side, visual.spatial_merge_size) if count > 1 else [batch]
    sees = any(p.requires_grad for p in visual.parameters())
    noise = module.config.trainer.neftune_alpha or 0.0
    try:
        for part in parts:
            with torch.enable_grad(), trainer.precision_plugin.forward_context():
                loss = token_losses(module.tuned.base, part.to(module.device), sees, noise)[0]
            (loss / max(batch.num_supervised, 1)).backward()
    except torch.OutOfMemoryError as error:
        return str(error).splitlines()[0]
    return None


@contextmanager
def _held_state(trainer: lightning.Trainer, module: TrainingModule) -> Iterator[None]:
    """Holds as much of the GPU as the optimiser's state will take, where it has none yet."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    has_state = any(optimizer.state for optimizer in trainer.optimizers)
    is_needed = module.device.type == "cuda" and not has_state
    size = int(module.config.optim.footprint(trained).state) if is_needed else 0
    held = torch.empty(size, dtype=torch.uint8, device=module.device)
    yield
    del held


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _words(batch: Batch) -> str:
    visual, supervised = batch.num_visual, batch.num_supervised
    return f"{batch.input_ids.numel():,} tokens, {visual:,} of them visual and {supervised:,} supervised"


def _peak(device: torch.device) -> str:
    return f", {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most" if device.type == "cuda" else ""
