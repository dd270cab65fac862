"""What a run takes from its folder: where it goes on, what it had measured, its last and its best weights."""

import logging
from dataclasses import replace
from typing import Any

import lightning
import torch
import torch.distributed

from harness.config import RunConfig, flatten
from harness.data.datamodule import DataModule
from harness.errors import UserError
from harness.experiment.folder import RunFolder
from harness.experiment.rank import global_rank
from harness.experiment.resume import AUTO
from harness.logging.metrics import read
from harness.trainer.callback import Best, Progression
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.in_place import stay
from harness.trainer.loss_check import LossCheck
from harness.trainer.module import TrainingModule

log = logging.getLogger(__name__)


def resume_step(config: RunConfig, checkpointer: Checkpointer) -> int:
    """Returns the step of the newest whole checkpoint where the run goes on, 0 where it starts anew.

    The first rank looks, and tells the others. Nothing of a checkpoint is unpickled before its manifest fits.

    Raises:
        UserError: The last checkpoint is damaged and was asked for by its run's path, or none is whole.
    """
    if config.trainer.resume is None:
        return 0
    found: list[Any] = [None]
    if global_rank() == 0:
        try:
            found = [newest_whole(checkpointer, falls_back=config.trainer.resume == AUTO)]
        except UserError as error:
            found = [error]
    if config.trainer.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    step: int = found[0]
    log.info("trainer.resume: %s", f"goes on after step {step}" if step else "no checkpoint yet, starts at step 0")
    return step


def newest_whole(checkpointer: Checkpointer, *, falls_back: bool) -> int:
    """Verifies checkpoints from the newest on, makes the first whole one the last, and returns its step, else 0.

    Args:
        checkpointer: Of the run.
        falls_back: Whether an older one will do.

    Raises:
        UserError: No whole one will do.
    """
    checkpointer.clean()
    folder, first = checkpointer.folder, ""
    unusable: list[int] = []
    candidates = checkpointer.candidates()
    for step in candidates:
        fault = checkpointer.fault(step)
        if fault is None:
            if not falls_back and unusable:
                break
            checkpointer.go_on_from(step, unusable)
            return step
        unusable.append(step)
        said = f"{folder / f'step_{step}'}: damaged: {fault}"
        log.error("%s", said)
        first = first or said
    if not candidates:
        return 0
    if step in unusable:
        raise UserError(f"{first}; none of {len(candidates)} checkpoints is whole: remove {folder} to start at step 0")
    raise UserError(f"{first}; trainer.resume=auto hydra.run.dir={folder.parent} goes on after step {step}")


def finished_summary(folder: RunFolder, data: DataModule) -> dict[str, Any] | None:
    """Returns the summary of a run that has all its steps and its result, which is then left as it is; else None.

    Raises:
        UserError: The run has more steps than are asked for.
    """
    if data.start_step > data.total_steps:
        raise UserError(
            f"trainer.max_steps: the run has done {data.start_step} steps, and {data.total_steps} are asked"
        )
    summary = folder.read_summary()
    if data.start_step < data.total_steps or summary.get("status") != "completed":
        return None
    log.info("all %d steps are done; a larger trainer.max_steps or trainer.max_epochs goes on", data.total_steps)
    if global_rank() == 0:
        folder.write_status(state="completed")
    return summary


def check_same_data(config: RunConfig, folder: RunFolder, data: DataModule) -> None:
    """Refuses to go on with other rows: the position in their order would mean something else."""
    before = folder.read_environment().get("data_fingerprint", data.fingerprint)
    if not data.start_step or before == data.fingerprint:
        return
    changed = f"the data changed since the run began, {before[:12]} -> {data.fingerprint[:12]}"
    if not config.trainer.force_resume:
        raise UserError(f"trainer.resume: {changed}; trainer.force_resume=true goes on all the same")
    log.warning("trainer.force_resume: %s", changed)


def warn_of_other_environment(folder: RunFolder, now: dict[str, Any]) -> None:
    """Names what is otherwise than when the run began or last went on: a result may depend on it."""
    before, after = flatten(folder.read_environment()), flatten(now)
    if not before:
        return
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and key != "data_fingerprint":
            log.warning("environment.json: %s: %s -> %s since the run began", key, before.get(key), after.get(key))


def progression_so_far(
    config: RunConfig, folder: RunFolder, checkpointer: Checkpointer, start_step: int
) -> Progression:
    """Returns what the run has come to before this process: nothing, or what metrics.jsonl says up to the resume."""
    best = Best(config.trainer.monitor)
    if not start_step:
        return Progression(best=best)
    rows = [row for row in read(folder.metrics) if row["step"] <= start_step]
    validated = [(row["step"], {k: v for k, v in row.items() if k.startswith("val/")}) for row in rows]
    by_step = {step: metrics for step, metrics in validated if metrics}
    best_step = checkpointer.step_of("best")
    if best_step in by_step:
        best = replace(best, value=by_step[best_step].get(best.metric), step=best_step)
    val = by_step[max(by_step)] if by_step else {}
    # Rows are not synced as checkpoints are: without power, a machine may keep the checkpoint alone.
    loss = rows[-1].get("train/loss") if rows else None
    return Progression(best=best, baseline=by_step.get(0, {}), val=val, train_loss=loss)


def loss_check_so_far(config: RunConfig, folder: RunFolder, start_step: int) -> LossCheck:
    """Returns what judges losses, with what the rows of metrics.jsonl up to the resume told it."""
    own = config.trainer
    check = LossCheck(own.on_nonfinite, own.max_nonfinite, own.spike_mads)
    if start_step:
        check.recall(row for row in read(folder.metrics) if row["step"] <= start_step)
    return check


def fit(trainer: lightning.Trainer, module: TrainingModule, data: DataModule, checkpointer: Checkpointer) -> None:
    """Trains from the last checkpoint, which has been verified, where the run goes on; returns when all is saved.

    Raises:
        NotSavedError: The last save failed, and that is not to be passed over.
    """
    if not checkpointer.parts:
        trainer.strategy.checkpoint_io = checkpointer.holder
    stay(trainer.strategy)
    path = checkpointer.path_of("last") if data.start_step else None
    trainer.fit(module, data, ckpt_path=path, weights_only=True)
    checkpointer.wait()


def load_best(module: TrainingModule, checkpointer: Checkpointer) -> None:
    """Puts the best checkpoint's trainable weights into the model. Called on every rank where weights are split.

    Raises:
        UserError: It is damaged.
    """
    step = checkpointer.step_of("best")
    if step is None:
        log.warning("trainer.load_best: no validation measured trainer.monitor, so the last weights are exported")
        return
    path = checkpointer.path_of("best")
    if (fault := checkpointer.fault(step)) is not None:
        remedy = f"with trainer.resume={checkpointer.folder.parent} trainer.load_best=false exports the last weights"
        raise UserError(f"{path.parent}: damaged: {fault}; {remedy}")
    if path.is_dir():
        module.trainer.strategy.load_checkpoint(path, weights_only=True)
        return
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    if module.averaging_optimizers():
        # The average that is to be exported follows from the weights and from the state that belongs to them.
        for optimizer, state in zip(module.trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
