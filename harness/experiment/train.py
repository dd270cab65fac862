"""Builds a run from its config and trains it: data first, since its mistakes are the quickest to find."""

import json
import logging
import math
import os
import pickle
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch

from harness.config import RunConfig, to_plain
from harness.data.datamodule import DataModule
from harness.data.encoding import Encoder
from harness.data.image_budget import set_budget
from harness.errors import UserError, reject
from harness.experiment.environment import environment
from harness.experiment.folder import RunFolder, write_json
from harness.experiment.result import print_result, trainable_table, write_success
from harness.logging.metrics import MetricsFile, read
from harness.logging.plot import plot_curves
from harness.logging.progress import Progress
from harness.logging.run_info import RunInfo
from harness.logging.setup import setup_logging
from harness.logging.tracker import finish
from harness.memory.precision import checked_precision
from harness.model.loading import pick_attention
from harness.model.processor import Processor, load_processor
from harness.registry import build
from harness.trainer.callback import Best, BetweenSteps, Progression
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.evaluate import Evaluator, drop_after
from harness.trainer.gradient_check import check_reachable
from harness.trainer.module import TrainingModule
from harness.trainer.recorder import DivergedError, Recorder
from harness.trainer.standard import pick_accelerator
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)


def train(folder: RunFolder, config: RunConfig, started: float) -> dict[str, Any]:
    """Trains one run in its folder; returns its summary on the first rank, nothing on the others.

    Args:
        folder: The run folder, claimed by this process.
        config: Checked config.
        started: `time.time()` at the start of the process.

    Raises:
        UserError: The data, the checkpoint or a setting can not be used.
        DivergedError: The loss is no finite number any more.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    setup_logging(folder.path, rank)
    pick_accelerator(config.trainer)
    lightning.seed_everything(config.seed, verbose=False)
    checkpointer = Checkpointer(folder.checkpoints, config.trainer.keep_checkpoints)
    processor = load_processor(config.model)
    data = _data(config, processor)
    data.start_step, data.total_steps = _resume_step(config, checkpointer), _total_steps(config, data)
    if data.start_step >= data.total_steps:
        return _nothing_left(folder, data)
    _check_same_data(folder, data)
    progression = _progression(config, folder, checkpointer, data.start_step)
    with ExitStack() as stack:
        # Trackers and files open first: what is missing there shows before weights are loaded.
        recorder = _recorder(folder, config, data, stack) if rank == 0 else Recorder(None, [], None, _world(config))
        tuned = _tuned(config, data)
        module = TrainingModule(tuned, config, data.total_steps)
        if rank == 0:
            log.info("%s", trainable_table(tuned.model, config.optim, module.lr))
            write_json(folder.path / "environment.json", environment(data.fingerprint))
        precision = checked_precision(config.memory, tuned.base, config.trainer)
        recorder.skips_overflow = precision == "fp16"
        evaluator = _evaluator(folder, config, data, processor)
        between = BetweenSteps(config.trainer, folder, data, recorder, evaluator, checkpointer, progression)
        trainer = build("trainer", config.trainer, data.total_steps, precision, [between])
        _fit(trainer, module, data, checkpointer)
    if not trainer.is_global_zero:
        return {}
    if config.trainer.load_best:
        _load_best(module, checkpointer)
    processor.save(tuned.export(folder.path))
    plot_curves(folder.metrics, folder.path / "curves.png")
    summary = write_success(folder, config, tuned.model, module.meter, progression, started)
    finish(recorder.loggers, 0, {"best": summary["best"]["value"], "tokens_per_s": summary["tokens_per_s"]})
    print_result(summary)
    return summary


def _tuned(config: RunConfig, data: DataModule) -> Tuned:
    """Loads the base model and makes it trainable, after the policy and within what the data reaches."""
    tuned = build("tuner", config.tuner, build("model", config.model), build("freeze", config.freeze))
    check_reachable(tuned.model, sum(sample.num_visual for sample in data.train_samples))
    build("memory", config.memory, tuned.base)
    return tuned


def _fit(trainer: lightning.Trainer, module: TrainingModule, data: DataModule, checkpointer: Checkpointer) -> None:
    """Trains from the last checkpoint where the run goes on.

    Raises:
        UserError: The checkpoint can not be read.
    """
    path = checkpointer.path_of("last") if data.start_step else None
    if path is not None:
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            others = ", ".join(sorted(p.name for p in checkpointer.folder.glob("step_*") if p != path.parent)) or "none"
            raise UserError(
                f"{path}: damaged ({str(error).splitlines()[0]}); remove {path.parent.name} and point checkpoints/last "
                f"to another; there are: {others}"
            ) from error
    trainer.fit(module, data, ckpt_path=path, weights_only=True)


def _nothing_left(folder: RunFolder, data: DataModule) -> dict[str, Any]:
    """Leaves a run that has all its steps as it is.

    Raises:
        UserError: It has more steps than are asked for.
    """
    if data.start_step > data.total_steps:
        raise UserError(
            f"trainer.max_steps: the run has done {data.start_step} steps, and {data.total_steps} are asked"
        )
    log.info("all %d steps are done; a larger trainer.max_steps or trainer.max_epochs goes on", data.total_steps)
    folder.write_status(state="completed")
    return json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else {}


def _check_same_data(folder: RunFolder, data: DataModule) -> None:
    """Refuses to go on with other rows: the position in their order would mean something else."""
    stored = folder.path / "environment.json"
    if data.start_step and stored.is_file():
        before = json.loads(stored.read_text(encoding="utf-8"))["data_fingerprint"]
        if before != data.fingerprint:
            raise UserError(
                f"trainer.resume: the data changed since the run began, {before[:12]} -> {data.fingerprint[:12]}"
            )


def _data(config: RunConfig, processor: Processor) -> DataModule:
    """Reads and encodes all rows; images are decoded later, in the loader's workers."""
    set_budget(processor.image_processor, config.data.image)
    encoder = Encoder(
        processor.tokenizer,
        processor.image_processor,
        max_length=config.data.longest_sample(),
        truncation=config.data.truncation,
    )
    data = DataModule(
        build("data", config.data),
        encoder,
        seed=config.seed,
        batch_size=config.trainer.batch_size,
        accumulate=config.trainer.accumulate,
        val_batch_size=config.trainer.val_batch_size,
        workers=config.data.workers,
        shuffle=config.data.shuffle,
        generation=config.data.generation,
        pack_length=config.data.pack_length(),
        padding_free=config.data.padding_free,
        one_row=pick_attention(config.model.attention).startswith("flash"),
    )
    data.prepare()
    return data


def _resume_step(config: RunConfig, checkpointer: Checkpointer) -> int:
    """Returns the step of the last checkpoint where the run goes on, 0 where it starts anew."""
    if config.trainer.resume is None:
        return 0
    step = checkpointer.step_of("last") or 0
    log.info("trainer.resume: %s", f"goes on after step {step}" if step else "no checkpoint yet, starts at step 0")
    return step


def _total_steps(config: RunConfig, data: DataModule) -> int:
    return config.trainer.max_steps or math.ceil(config.trainer.max_epochs * data.steps_per_epoch(_world(config)))


def _world(config: RunConfig) -> int:
    return config.trainer.devices


def _evaluator(folder: RunFolder, config: RunConfig, data: DataModule, processor: Processor) -> Evaluator | None:
    """Returns what validates, or None where there are no validation rows.

    Raises:
        UserError: A setting needs validation rows and there are none.
    """
    if data.val_samples:
        return Evaluator(data, processor.tokenizer, folder.predictions, config.data.generation.max_new_tokens)
    for key in ("load_best", "val_every_steps"):
        if getattr(config.trainer, key):
            raise reject(f"trainer.{key}", getattr(config.trainer, key), "there are no validation rows; give data.val")
    return None


def _recorder(folder: RunFolder, config: RunConfig, data: DataModule, stack: ExitStack) -> Recorder:
    """Opens metrics.jsonl, cut back to where the run goes on, and its views."""
    loggers = build("logging", config.logging, _run_info(folder, config, data.start_step))
    file = stack.enter_context(MetricsFile(folder.metrics))
    file.truncate_after(data.start_step or -1)
    drop_after(folder.predictions, data.start_step or -1)
    progress = stack.enter_context(Progress(data.total_steps, data.start_step))
    recorder = Recorder(file, loggers, progress, _world(config))
    stack.push(lambda kind, error, trace: _give_up(recorder) if kind else None)
    return recorder


def _give_up(recorder: Recorder) -> None:
    """Saves what an error would lose: the buffered steps, and what trackers hold back."""
    try:
        recorder.abandon()
    except DivergedError:
        log.warning("the steps after the last row diverged too")
    finish(recorder.loggers, 1)


def _progression(config: RunConfig, folder: RunFolder, checkpointer: Checkpointer, start_step: int) -> Progression:
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
    return Progression(best=best, baseline=by_step.get(0, {}), val=by_step[max(by_step)] if by_step else {})


def _run_info(folder: RunFolder, config: RunConfig, start_step: int) -> RunInfo:
    return RunInfo(
        folder=folder.path,
        run_id=folder.read_status()["run_id"],
        name=folder.path.name,
        group=folder.group,
        tags=[Path(config.model.path).name, config.tuner.name, "freeze " + _frozen(config), config.data.name],
        config=to_plain(config),
        resumed=start_step > 0,
        initial_step=start_step,
    )


def _frozen(config: RunConfig) -> str:
    return "_".join(component.name for component in config.freeze.frozen) or "none"


def _load_best(module: TrainingModule, checkpointer: Checkpointer) -> None:
    """Puts the best checkpoint's trainable weights into the model."""
    if checkpointer.step_of("best") is None:
        log.warning("trainer.load_best: no validation measured trainer.monitor, so the last weights are exported")
        return
    weights = torch.load(checkpointer.path_of("best"), map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(weights, strict=False)
