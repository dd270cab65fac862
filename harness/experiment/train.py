"""Builds a run from its config and trains it: data first, since its mistakes are the quickest to find."""

import logging
import math
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch

from harness.config import RunConfig, config_hash, to_plain
from harness.data.datamodule import DataModule
from harness.data.encoding import Encoder
from harness.data.image_budget import set_budget
from harness.experiment.environment import environment
from harness.experiment.folder import RunFolder, write_json
from harness.experiment.result import print_result, trainable_table, write_success
from harness.logging.metrics import MetricsFile, read
from harness.logging.plot import plot_curves
from harness.logging.progress import Progress
from harness.logging.run_info import RunInfo
from harness.logging.setup import setup_logging
from harness.logging.tracker import finish
from harness.memory.standard import resolved_precision
from harness.model.processor import Processor, load_processor
from harness.registry import build
from harness.trainer.callback import Best, BetweenSteps, Progression
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.evaluate import Evaluator
from harness.trainer.gradient_check import check_reachable
from harness.trainer.module import TrainingModule
from harness.trainer.recorder import Recorder

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
    lightning.seed_everything(config.seed, verbose=False)
    processor = load_processor(config.model)
    data = _data(config, processor)
    tuned = build("tuner", config.tuner, build("model", config.model), build("freeze", config.freeze))
    check_reachable(tuned.model, sum(sample.num_visual for sample in data.train_samples))
    build("memory", config.memory, tuned.base)
    checkpointer = Checkpointer(folder.checkpoints, config.trainer.keep_checkpoints)
    data.start_step, data.total_steps = _resume_step(config, checkpointer), _total_steps(config, data)
    module = TrainingModule(tuned, config, data.total_steps)
    progression = Progression(best=_best(config, folder, checkpointer, data.start_step))
    with ExitStack() as stack:
        recorder = _recorder(folder, config, data, stack) if rank == 0 else Recorder(None, [], None, _world(config))
        if rank == 0:
            log.info("%s", trainable_table(tuned.model, config.optim, module.lr))
            write_json(folder.path / "environment.json", environment(data.fingerprint))
        evaluator = _evaluator(folder, config, data, processor)
        between = BetweenSteps(config.trainer, folder, data, recorder, evaluator, checkpointer, progression)
        trainer = build("trainer", config.trainer, data.total_steps, _precision(config), [between])
        resumed = checkpointer.path_of("last") if data.start_step else None
        trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
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


def _data(config: RunConfig, processor: Processor) -> DataModule:
    """Reads and encodes all rows; images are decoded later, in the loader's workers."""
    set_budget(processor.image_processor, config.data.image)
    encoder = Encoder(
        processor.tokenizer,
        processor.image_processor,
        max_length=config.data.max_length,
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
    )
    data.prepare()
    return data


def _precision(config: RunConfig) -> str:
    return resolved_precision(config.memory, config.model.dtype.name).name


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
    """Returns what validates, or None where there are no validation rows."""
    longest = config.data.generation.max_new_tokens
    return Evaluator(data, processor.tokenizer, folder.predictions, longest) if data.val_samples else None


def _recorder(folder: RunFolder, config: RunConfig, data: DataModule, stack: ExitStack) -> Recorder:
    """Opens metrics.jsonl, cut back to where the run goes on, and its views."""
    loggers = build("logging", config.logging, _run_info(folder, config, data.start_step))
    file = stack.enter_context(MetricsFile(folder.metrics))
    file.truncate_after(data.start_step or -1)
    progress = stack.enter_context(Progress(data.total_steps, data.start_step))
    return Recorder(file, loggers, progress, _world(config))


def _best(config: RunConfig, folder: RunFolder, checkpointer: Checkpointer, start_step: int) -> Best:
    """Returns the best validation before a resume: the metric of the step that `best` links to."""
    best = Best(config.trainer.monitor)
    step = checkpointer.step_of("best") if start_step else None
    row = next((row for row in read(folder.metrics) if row["step"] == step), {}) if step else {}
    return replace(best, value=row[best.metric], step=step) if best.metric in row else best


def _run_info(folder: RunFolder, config: RunConfig, start_step: int) -> RunInfo:
    return RunInfo(
        folder=folder.path,
        run_id=config_hash(config),
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
