"""What a run takes from its folder: where it goes on, what it had measured, its last and its best weights."""

import json
import logging
import pickle
from dataclasses import replace
from typing import Any

import lightning
import torch

from harness.config import RunConfig
from harness.data.datamodule import DataModule
from harness.errors import UserError
from harness.experiment.folder import RunFolder
from harness.experiment.rank import global_rank
from harness.logging.metrics import read
from harness.trainer.callback import Best, Progression
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.module import TrainingModule

log = logging.getLogger(__name__)


def resume_step(config: RunConfig, checkpointer: Checkpointer) -> int:
    """Returns the step of the last checkpoint where the run goes on, 0 where it starts anew."""
    if config.trainer.resume is None:
        return 0
    step = checkpointer.step_of("last") or 0
    log.info("trainer.resume: %s", f"goes on after step {step}" if step else "no checkpoint yet, starts at step 0")
    return step


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


def check_same_data(folder: RunFolder, data: DataModule) -> None:
    """Refuses to go on with other rows: the position in their order would mean something else."""
    stored = folder.path / "environment.json"
    if data.start_step and stored.is_file():
        before = json.loads(stored.read_text(encoding="utf-8"))["data_fingerprint"]
        if before != data.fingerprint:
            raise UserError(
                f"trainer.resume: the data changed since the run began, {before[:12]} -> {data.fingerprint[:12]}"
            )


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
    return Progression(best=best, baseline=by_step.get(0, {}), val=val, train_loss=rows[-1].get("train/loss"))


def fit(trainer: lightning.Trainer, module: TrainingModule, data: DataModule, checkpointer: Checkpointer) -> None:
    """Trains from the last checkpoint where the run goes on.

    Raises:
        UserError: The checkpoint can not be read.
    """
    path = checkpointer.path_of("last") if data.start_step else None
    # A folder holds the parts of a strategy that splits weights, and is read by it.
    if path is not None and path.is_file():
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            others = ", ".join(sorted(p.name for p in checkpointer.folder.glob("step_*") if p != path.parent)) or "none"
            raise UserError(
                f"{path}: damaged ({str(error).splitlines()[0]}); remove {path.parent.name} and point checkpoints/last "
                f"to another; there are: {others}"
            ) from error
    trainer.fit(module, data, ckpt_path=path, weights_only=True)


def load_best(module: TrainingModule, checkpointer: Checkpointer) -> None:
    """Puts the best checkpoint's trainable weights into the model. Called on every rank where weights are split."""
    if checkpointer.step_of("best") is None:
        log.warning("trainer.load_best: no validation measured trainer.monitor, so the last weights are exported")
        return
    path = checkpointer.path_of("best")
    if path.is_dir():
        module.trainer.strategy.load_checkpoint(path, weights_only=True)
        return
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    if module.averaging_optimizers():
        # The average that is to be exported follows from the weights and from the state that belongs to them.
        for optimizer, state in zip(module.trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
