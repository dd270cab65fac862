"""Builds a run from its config and trains it: data first, since its mistakes are the quickest to find."""

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch

from harness.config import RunConfig, to_plain
from harness.data.assemble import data_module
from harness.data.datamodule import DataModule
from harness.errors import reject
from harness.experiment import weights_from
from harness.experiment.budget import solve
from harness.experiment.environment import environment
from harness.experiment.failure import log_of
from harness.experiment.feature_cache import close_feature_cache, may_keep_features, open_feature_cache
from harness.experiment.folder import RunFolder, write_json
from harness.experiment.group import EarlyReport
from harness.experiment.rank import global_rank, local_rank
from harness.experiment.restore import (
    check_same_data,
    finished_summary,
    fit,
    load_best,
    loss_check_so_far,
    progression_so_far,
    resume_step,
    warn_of_other_environment,
)
from harness.experiment.result import end_hung, print_result, trainable_table, write_success
from harness.experiment.startup import Phase, Startup
from harness.logging.metrics import MetricsFile, read
from harness.logging.plot import plot_curves
from harness.logging.progress import Progress
from harness.logging.run_info import RunInfo
from harness.logging.setup import setup_logging
from harness.logging.tracker import finish, log_row
from harness.memory.config import AUTO
from harness.memory.first_device import first_device
from harness.memory.fitting import plan_ahead
from harness.memory.precision import checked_precision
from harness.memory.prediction import trained_share
from harness.memory.resolve import Resolved, resolve, room_gib
from harness.memory.strategy.parallel import Parallel, Ranks, Weight
from harness.model.compiled import compile_blocks, forget_counts, graph_settings, report_programs, will_compile
from harness.model.loading import Loaded, text_config
from harness.model.prequantized import check_tuner
from harness.model.processor import Processor, load_processor
from harness.model.ulysses import check_heads, share_sequences
from harness.model.weights import Weights
from harness.optim.schedule import ScheduleName
from harness.registry import build
from harness.trainer.callback import BetweenSteps
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.deterministic import deterministic
from harness.trainer.evaluate import Evaluator, drop_after
from harness.trainer.gradient_check import check_reachable
from harness.trainer.host_sync import sync_counter
from harness.trainer.loss_check import DivergedError, LossCheck
from harness.trainer.module import TrainingModule
from harness.trainer.peak import peaks
from harness.trainer.probe import Probe
from harness.trainer.recorder import Recorder
from harness.trainer.replay import watch
from harness.trainer.standard import OnSaveError, StandardConfig, training_device
from harness.trainer.step_profile import StepProfile
from harness.trainer.watchdog import Watchdog, writes_stacks
from harness.tuner.exceptions import check_exceptions
from harness.tuner.new_tokens import settle
from harness.tuner.outlook import Outlook
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

TRACKED = "tracked"
"""In status.json: whether the trackers of a run that is completed have all of it."""


def train(folder: RunFolder, config: RunConfig, startup: Startup, weights: Weights | None = None) -> dict[str, Any]:
    """Trains one run in its folder; returns its summary on the first rank, nothing on the others.

    Args:
        folder: The run folder, claimed by this process.
        config: Checked config.
        startup: Clock of the start.
        weights: The model's, on their way, where the reading has begun.

    Raises:
        UserError: The data, the checkpoint or a setting can not be used.
        DivergedError: The loss is no finite number any more.
    """
    rank = global_rank()
    setup_logging(folder.path, rank)
    asked = config
    config, solved = solve(asked)
    device = training_device(config.trainer, local_rank())
    syncs = sync_counter(config.trainer.debug_syncs, "gpu" if device.type == "cuda" else "cpu")
    lightning.seed_everything(config.seed, verbose=False)
    forget_counts()
    checkpointer = _checkpointer(folder, config)
    if (sharers := config.memory.sequence_parallel) > 1:
        check_heads(text_config(config.model), sharers)
    processor = load_processor(config.model)
    data = data_module(config, processor)
    data.prepare()
    data.start_step, data.total_steps = resume_step(config, checkpointer), _total_steps(config, data)
    if (summary := finished_summary(folder, data)) is not None:
        if rank == 0 and not folder.read_status().get(TRACKED, True):
            loggers = _trackers(folder, config, data.start_step)
            _show_rows(folder, loggers)
            _close(folder, loggers, summary)
        return summary
    sized = _with_micro_batch(config, data, device)
    check_same_data(config, folder, data)
    begun_with = None
    if (named := config.trainer.weights_from) is not None and not data.start_step:
        begun_with = weights_from.find(named)
        weights_from.take_start(begun_with, folder.checkpoints)
    progression = progression_so_far(config, folder, checkpointer, data.start_step)
    loss_check = loss_check_so_far(config, folder, data.start_step)
    startup.end(Phase.data)
    with ExitStack() as stack:
        stack.enter_context(deterministic(config.trainer.deterministic))
        if device.type == "cuda":
            # A process forked while a thread is at it would find a lock that nobody opens.
            torch.cuda.init()
        # Workers take the handler of the signal over.
        stacks = stack.enter_context(writes_stacks(log_of(folder, rank)))
        watchdog = Watchdog(config.trainer.watchdog_s, stacks, lambda error: end_hung(folder, config, startup, error))
        stack.callback(watchdog.stop)
        stack.callback(data.stop_workers)
        stack.callback(checkpointer.close)
        # Workers that look for cached features have to know the tower first.
        if not (cacheable := may_keep_features(config, data)):
            data.start_workers(rank, _world(config))
        # Trackers and files open first: what is missing there shows before weights are loaded.
        recorder = (
            _recorder(folder, config, data, loss_check, stack)
            if rank == 0
            else Recorder(None, [], None, _world(config), loss_check, config.data.channels, sharers)
        )
        loaded = build("model", config.model, first_device(config.memory, device), weights)
        build("memory/quant", config.memory.quant, loaded.model, device)
        check_tuner(config.tuner, loaded.model)
        if startup.warm is not None and weights is not None:
            startup.warm["weights_gib"] = weights.reused_gib
        startup.end(Phase.model)
        compiled = will_compile(config, loaded.model.config.model_type, device)
        tuned, memory = _tuned(config, loaded, data, folder, device, startup, compiled)
        if begun_with is not None:
            weights_from.load(begun_with, tuned)
        startup.end(Phase.tuner)
        parallel = _parallel(config, tuned, device, compiled)
        if sharers > 1:
            share_sequences(tuned.base, sharers, config.trainer.ddp_timeout_s)
            parallel.settings["sequence_parallel"] = sharers
        module = TrainingModule(tuned, config, data.total_steps, parallel)
        if rank == 0:
            write_json(folder.path / "strategy.json", parallel.settings)
            log.info("%s", trainable_table(tuned, config.optim, module.lr))
            surroundings = environment(data.fingerprint)
            warn_of_other_environment(folder, surroundings)
            write_json(folder.path / "environment.json", surroundings)
        precision = checked_precision(memory.config, tuned.base, config.trainer)
        recorder.check.skips_overflow = precision == "fp16"
        module.meter.syncs = syncs
        module.meter.peaks = peaks(device, precision, config.trainer.measure_peak)
        evaluator = _evaluator(folder, config, data, processor)
        cache = open_feature_cache(config, data, tuned, precision, device)
        if cache is not None:
            stack.callback(close_feature_cache, cache, data, tuned)
        if cacheable:
            data.start_workers(rank, _world(config))
        between = BetweenSteps(config.trainer, folder, data, recorder, evaluator, checkpointer, progression, watchdog)
        profiled = (
            [StepProfile(span[0], span[1], folder.path / "profile")] if (span := config.trainer.profile_steps) else []
        )
        early = [EarlyReport(folder)] if _world(config) > 1 else []
        probes = [Probe(data)] if config.trainer.probe else []
        callbacks = [*early, *probes, *profiled, between]
        trainer = build("trainer", sized, data.total_steps, precision, callbacks, parallel.lightning)
        watch(trainer, module)
        startup.end(Phase.trainer)
        with nullcontext() if syncs is None else syncs.counting():
            fit(trainer, module, data, checkpointer)
        report_programs()
    if config.trainer.load_best and (trainer.is_global_zero or parallel.gather is not None):
        load_best(module, checkpointer)
    module.settle()
    if parallel.gather is not None:
        parallel.gather(module)
    if not trainer.is_global_zero:
        return {}
    processor.save(tuned.export(folder.path))
    plot_curves(folder.metrics, folder.path / "curves.png")
    accounts = {split: account.plain() for split, account in data.accounts.items()}
    kept = None if cache is None else cache.summary()
    summary = write_success(
        folder,
        asked,
        module,
        progression,
        accounts,
        startup,
        memory.outcome,
        asdict(checkpointer.saves),
        recorder.check,
        kept,
        None if solved is None else asdict(solved),
    )
    _close(folder, recorder.loggers, summary)
    print_result(summary)
    if weights is not None:
        weights.leave(module.model)
    return summary


def _checkpointer(folder: RunFolder, config: RunConfig) -> Checkpointer:
    """Makes what saves."""
    return Checkpointer(
        folder.checkpoints,
        config.trainer.keep_checkpoints,
        goes_on=config.trainer.on_save_error is OnSaveError["continue"],
        parts=config.memory.strategy.saves_parts,
        in_background=config.trainer.async_save,
    )


def _tuned(
    config: RunConfig,
    loaded: Loaded,
    data: DataModule,
    folder: RunFolder,
    device: torch.device,
    startup: Startup,
    compiled: bool,
) -> tuple[Tuned, Resolved]:
    """Makes the base model trainable, after the policy and within what the data reaches."""
    outlook = Outlook(data.total_steps, data.calibration_batches, device, folder.checkpoints / "start.safetensors")
    policy = build("freeze", config.freeze, loaded.model)
    tuned = build("tuner", config.tuner, loaded, policy, outlook)
    settle(tuned, loaded.new_tokens, config.model.train_new_tokens)
    check_exceptions(tuned, policy, config.tuner.name)
    check_reachable(tuned.model, data.shows_something)
    # Rows are looked through for it, which only a prediction needs.
    extent = data.largest_batch() if config.memory.checkpointing == AUTO else None
    resolved = resolve(config, tuned, extent, device, compiled)
    build("memory", resolved.config, tuned.base, device)
    if compiled:
        hooked = config.memory.strategy.sharded
        again = compile_blocks(tuned.base, config.data.has_one_length, graph_settings(config), hooked)
        if startup.warm is not None:
            startup.warm["compiled"] = again
    return tuned, resolved


def _with_micro_batch(config: RunConfig, data: DataModule, device: torch.device) -> StandardConfig:
    """Returns the trainer's config with the micro-batch that memory=auto chooses, and tells the data."""
    if config.memory.checkpointing != AUTO or device.type != "cuda":
        return config.trainer
    chosen = plan_ahead(config, data, device, room_gib(config.memory, device))
    if chosen is None:
        return config.trainer
    data.resize(chosen.batch_size, chosen.accumulate)
    return replace(config.trainer, batch_size=chosen.batch_size, accumulate=chosen.accumulate)


def _parallel(config: RunConfig, tuned: Tuned, device: torch.device, compiled: bool) -> Parallel:
    """Builds the strategy."""
    optim, text = config.optim, tuned.base.model.language_model
    layers = [tuple(Weight(p.numel(), p.ndim, p.requires_grad) for p in layer.parameters()) for layer in text.layers]
    ranks = Ranks(
        world_size=_world(config),
        device_type=device.type,
        max_grad_norm=optim.max_grad_norm or None,
        skips_parameters=optim.skips_parameters,
        trained_share=trained_share(tuned.model),
        layer=max(layers, key=lambda weights: sum(weight.values for weight in weights)),
        compiled=compiled,
    )
    return build("memory/strategy", config.memory.strategy, ranks)


def _total_steps(config: RunConfig, data: DataModule) -> int:
    return config.trainer.max_steps or data.steps(config.trainer.max_epochs, _world(config))


def _world(config: RunConfig) -> int:
    return config.trainer.world_size


def _evaluator(folder: RunFolder, config: RunConfig, data: DataModule, processor: Processor) -> Evaluator | None:
    """Returns what validates, or None where there are no validation rows.

    Raises:
        UserError: A setting needs validation rows and there are none.
    """
    if data.val_samples:
        longest = config.data.generation.max_new_tokens
        return Evaluator(data, processor.tokenizer, folder.predictions, folder.items, longest)
    for key in ("load_best", "val_every_steps"):
        if getattr(config.trainer, key):
            raise reject(f"trainer.{key}", getattr(config.trainer, key), "there are no validation rows; give data.val")
    if config.optim.schedule.name is ScheduleName.reduce_lr_on_plateau:
        raise reject("optim.schedule.name", "reduce_lr_on_plateau", "there are no validation rows; give data.val")
    return None


def _recorder(folder: RunFolder, config: RunConfig, data: DataModule, check: LossCheck, stack: ExitStack) -> Recorder:
    """Opens metrics.jsonl, cut back to where the run goes on, and its views, which are given what it holds."""
    loggers = _trackers(folder, config, data.start_step)
    file = stack.enter_context(MetricsFile(folder.metrics))
    file.truncate_after(data.start_step or -1)
    _show_rows(folder, loggers)
    drop_after(folder.predictions, data.start_step or -1)
    progress = stack.enter_context(Progress(data.total_steps, data.start_step))
    sharers = config.memory.sequence_parallel
    recorder = Recorder(file, loggers, progress, _world(config), check, config.data.channels, sharers)
    stack.push(lambda kind, error, trace: _give_up(recorder) if kind else None)
    return recorder


def _trackers(folder: RunFolder, config: RunConfig, start_step: int) -> list[Any]:
    loggers: list[Any] = build("logging", config.logging, _run_info(folder, config, start_step))
    return loggers


def _show_rows(folder: RunFolder, loggers: list[Any]) -> None:
    """Gives trackers what metrics.jsonl holds: a killed process has lost some of it, and later rows are void."""
    folder.write_status(**{TRACKED: False})
    for row in read(folder.metrics):
        log_row(loggers, row)


def _close(folder: RunFolder, loggers: list[Any], summary: dict[str, Any]) -> None:
    """Gives trackers the final figures; the summary is there before, for a server may keep them waiting."""
    finish(loggers, 0, {"best": summary["best"]["value"], "tokens_per_s": summary["tokens_per_s"]})
    folder.write_status(**{TRACKED: True})


def _give_up(recorder: Recorder) -> None:
    """Saves what an error would lose: the buffered steps, and what trackers hold back."""
    try:
        recorder.abandon()
    except DivergedError:
        log.warning("the steps after the last row diverged too")
    finish(recorder.loggers, 1)


def _run_info(folder: RunFolder, config: RunConfig, start_step: int) -> RunInfo:
    return RunInfo(
        folder=folder.path,
        run_id=folder.read_status()["run_id"],
        name=folder.path.name,
        group=folder.group,
        tags=[Path(config.model.path).name, config.tuner.name, "freeze " + _frozen(config), config.data.name],
        config=to_plain(config),
        initial_step=start_step,
    )


def _frozen(config: RunConfig) -> str:
    return "_".join(component.name for component in config.freeze.frozen) or "none"
