"""What a run shows: what trains, its result, and summary.json."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from torch import nn

from harness.config import RunConfig
from harness.experiment.end import figures, write_failure
from harness.experiment.failure import log_of, report
from harness.experiment.folder import RunFolder, write_json
from harness.experiment.rank import global_rank
from harness.experiment.startup import Startup
from harness.logging.setup import FILE_ONLY
from harness.logging.table import render, show
from harness.memory.quant.linear import sizes
from harness.model.component import Component, component_of
from harness.optim.group import parameter_groups
from harness.trainer.callback import Progression
from harness.trainer.loss_check import LossCheck
from harness.trainer.module import TrainingModule
from harness.trainer.watchdog import HungError
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

_STACKS_S = 2.0
"""That ranks have for writing their stacks."""


def write_success(
    folder: RunFolder,
    config: RunConfig,
    module: TrainingModule,
    progression: Progression,
    accounts: dict[str, Any],
    startup: Startup,
    memory: Callable[[float | None], dict[str, Any] | None],
    saves: dict[str, Any],
    check: LossCheck,
    vit_cache: dict[str, Any] | None = None,
    solved: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes and returns the summary of a completed run.

    Args:
        folder: The run folder.
        config: The run's config.
        module: The trained model, for its parameter counts, and the counts of this process and the attempts before it.
        progression: Metrics gathered on the way.
        accounts: What became of the rows of each split.
        startup: What the start took.
        memory: Takes the peak in GiB, returns how it was predicted.
        saves: What became of the checkpoints of this process.
        check: What the losses were.
        vit_cache: What the cache of visual features did; None where there was none.
        solved: What tuner.budget came to; None where there was none.
    """
    meter, named = module.meter, dict(module.model.named_parameters())
    steady = meter.steady if meter.steady.steps else meter.total
    use = steady.use(meter.peaks)
    world_size = config.data_ranks
    now = time.monotonic()
    first_step = progression.first_step_at or now
    content = figures(folder, config, "completed", startup.started) | {
        "tokens": round(meter.total.tokens * world_size),
        "train_loss": progression.train_loss,
        "val": progression.val,
        "data": accounts,
        "vit_cache": vit_cache,
        "baseline": progression.baseline,
        "best": asdict(progression.best),
        "tuner_size": solved,
        "trainable_parameters": sum(named[name].numel() for name in module.trainable_names),
        "total_parameters": sum(sizes(module.model).values()),
        "tokens_per_s": steady.rates(world_size)["perf/tokens_per_s"],
        "step_time_s": steady.rates(world_size)["perf/step_time_s"],
        "data_wait_fraction": steady.rates(world_size)["perf/data_wait_fraction"],
        "mfu": use.get("perf/mfu"),
        "hfu": use.get("perf/hfu"),
        "mfu_of_measured_peak": use.get("perf/mfu_of_measured_peak"),
        "model_tflop_per_s": use["perf/model_tflop_per_s"],
        "measured_peak_tflop_per_s": meter.peaks.measured,
        "peak_allocated_gib": progression.memory.get("memory/peak_allocated_gib"),
        "saves": saves,
        "nonfinite_steps": check.nonfinite_steps,
        "loss_spikes": check.loss_spikes,
        "oom_replays": meter.total.oom_replays,
        "memory": memory(progression.memory.get("memory/peak_allocated_gib")),
        "startup_time_s": first_step - startup.started,
        "startup": startup.seconds(first_step),
        "finish_time_s": now - (progression.last_step_at or now),
        "warm": startup.warm,
        "error": None,
    }
    write_json(folder.summary, content)
    folder.write_status(state="completed", exit_reason=None)
    return content


def end_hung(folder: RunFolder, config: RunConfig, startup: Startup, error: HungError) -> None:
    """Says in the folder that a run stands still, in its watchdog's thread; who started several ranks does the rest."""
    rank, alone = global_rank(), config.trainer.world_size == 1
    if alone:
        write_failure(folder, config, "failed", error, startup.started)
    else:
        report(folder, rank, error)
    log.error("failed: %s; its stacks: %s", error, log_of(folder, rank), extra={FILE_ONLY: not alone})
    if alone:
        print(f"run: {folder.path}", flush=True)
    else:
        # As soon as this process ends, the others end too: until then they are asked for their stacks.
        time.sleep(_STACKS_S)


def trainable_table(tuned: Tuned, optim: Any, lr: float) -> str:
    """Renders what really trains: a row per component with its parameters, adapters, learning rate and types.

    Args:
        tuned: The tuned model.
        optim: The optimiser's config, for what rates differ by.
        lr: Learning rate of what has none of its own.

    Raises:
        UserError: As for `parameter_groups`.
    """
    size = sizes(tuned.model)
    groups = parameter_groups(tuned.model, optim, lr, tuned.lr_scales)
    rows: list[list[str | int | float | None]] = []
    for component in Component:
        named = [(name, p) for name, p in tuned.model.named_parameters() if component_of(name) is component]
        adapter = [p for name, p in named if name in tuned.adapter]
        training = [p for _, p in named if p.requires_grad]
        rows.append(
            [
                component.value,
                sum(size[name] for name, _ in named),
                sum(p.numel() for p in training),
                sum(p.numel() for p in adapter),
                _rates(group["lr"] for group in groups if group["component"] == component.value),
                _dtypes(p for _, p in named if not p.requires_grad),
                _dtypes(training),
            ]
        )
    total = ["all", *(sum(int(row[i] or 0) for row in rows) for i in (1, 2, 3)), None, None, None]
    columns = ["component", "parameters", "trainable", "adapter", "learning rate", "frozen dtype", "trained dtype"]
    return render("what trains", columns, [*rows, total])


def print_result(summary: dict[str, Any]) -> None:
    """Prints the outcome on stdout: each validation metric before and after, speed, and parameters."""
    before, after = summary["baseline"], summary["val"]
    rows = [[name, before.get(name), value] for name, value in after.items()]
    if rows:
        show("result", ["metric", "before training", f"after {summary['steps']} steps"], rows)
    best = summary["best"]
    if best["step"] is not None:
        print(f"best {best['metric']} {best['value']:.4f} at step {best['step']}")
    print(
        f"trained {summary['trainable_parameters']:,} of {summary['total_parameters']:,} parameters, "
        f"{summary['tokens_per_s']:,.0f} tokens/s, {summary['wall_time_s']:.0f} s in all"
    )


def _rates(rates: Iterable[float]) -> str | None:
    """Spells up to three different rates, and of more the lowest and the highest."""
    texts = list(dict.fromkeys(f"{rate:.1e}" for rate in sorted(rates)))
    return (", ".join(texts) if len(texts) <= 3 else f"{texts[0]} to {texts[-1]}") or None


def _dtypes(parameters: Iterable[nn.Parameter]) -> str | None:
    return ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or None
