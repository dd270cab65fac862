"""How long to train, on what, and how often to validate, save and log."""

import math
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, reject
from harness.registry import register

if TYPE_CHECKING:
    import lightning
    import torch


METRICS = ("val/loss", "val/exact_match")
"""What a validation measures."""


def badness(metric: str, value: float) -> float:
    """Returns a number that is lower for a better value: of a loss itself, of all else its negative."""
    return value if metric.endswith("loss") else -value


class Accelerator(Enum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Backend(Enum):
    """Libraries of collective operations."""

    nccl = "nccl"
    gloo = "gloo"


class OnNonfinite(Enum):
    """What a run does at a loss or gradient that is no finite number."""

    stop = "stop"
    skip = "skip"


OnSaveError = Enum("OnSaveError", {"continue": "continue", "stop": "stop"})
"""What a run does whose checkpoint can not be written. `continue` is a word of Python's, so no class can have it."""


@dataclass(kw_only=True, slots=True)
class StandardConfig:
    """The global batch of an optimiser step is batch_size x accumulate x devices x nodes rows."""

    name: str = "standard"
    max_steps: int | None = None
    """Optimiser steps; null trains for `max_epochs`."""
    max_epochs: float = 3.0
    """Passes over the training rows, fractions allowed; no step is cut short, so the last may begin one more. Unused
    where `max_steps` is set."""
    batch_size: int = 16
    """Rows per device and micro-batch; packs, with `data.packing`."""
    accumulate: int = 1
    """Micro-batches per optimiser step. The loss is the same as with one batch of that size."""
    oom_replay: bool | None = None
    """Take a step anew that runs out of GPU memory, with the same loss: its micro-batches are cut by rows, a single row
    has all layers checkpointed. null: on one process. true on several (DDP): gradients are reduced after the backward
    pass, not within it."""
    probe: bool = False
    """Try the largest planned training and validation batches before the first step, forward and backward, so that a
    run out of memory shows in a minute. Changes nothing that comes after."""
    neftune_alpha: float | None = None
    """NEFTune: noise of this strength on the embeddings of text in training (usual: 5 to 15); null for none."""
    accelerator: Accelerator = Accelerator.auto
    """auto takes a GPU if there is one."""
    compile: bool | None = None
    """Compile decoder layers and ViT blocks with torch.compile. null does on a GPU where all batches have one length
    (data.packing), and says in the log what it did and why."""
    devices: int = 1
    """Processes on a node, each with a GPU or a share of the CPU. torchrun and srun have to start as many."""
    nodes: int = 1
    """Nodes. srun and torchrun start the run on each; by hand, start the same command on each with NODE_RANK,
    MASTER_ADDR and MASTER_PORT. The run folder has to be on a disk that all of them see."""
    ddp_backend: Backend | None = None
    """How processes talk to each other; null takes nccl on GPUs and gloo on CPUs."""
    ddp_timeout_s: float = 1800.0
    """Seconds that processes wait for each other, at the start and in each exchange, before the run fails."""
    val_every_steps: int | None = None
    """Optimiser steps between validations; null validates after each epoch. The last step always validates."""
    val_at_start: bool = True
    """Validate before the first step, for a figure to compare with."""
    val_batch_size: int = 64
    """Rows per device in validation and generation."""
    save_every_steps: int | None = None
    """Optimiser steps between checkpoints; null saves after each validation. The last step always saves."""
    checkpoints: bool = True
    """Write checkpoints. false saves disk and time where only figures count: a stopped run begins anew."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept beside the best one."""
    async_save: bool = False
    """Write checkpoints in a thread while training goes on: a save costs the time of a copy to host memory, and that
    memory. The bytes are the same. A process that is killed while the thread writes has the checkpoint before. One
    process or DDP."""
    on_save_error: OnSaveError = OnSaveError["continue"]
    """Where a checkpoint can not be written (a full disk): continue logs and counts it and tries again at the next one,
    for stopping would lose for certain what may still be saved; stop ends the run. Those written before stay."""
    on_nonfinite: OnNonfinite = OnNonfinite.stop
    """At a step whose loss or gradient is no finite number: stop ends the run as diverged; skip leaves weights and
    optimiser state as they are, on all ranks, counts the step, and goes on with schedule and data. Either way the batch
    that ended a run is kept in its folder. fp16's scaler skips overflowing gradients by itself."""
    max_nonfinite: int = 10
    """Such steps in a row that end a run with `on_nonfinite=skip`: the weights themselves are broken then."""
    spike_mads: float | None = 8.0
    """Warn of and count a step whose loss is this many spreads (1.4826 median absolute deviations) above the median of
    the last 100, and 0.5 nats at least. Changes nothing else. null: none."""
    watchdog_s: float | None = 1800.0
    """Seconds in which a micro-batch has to arrive, and to be trained on. A run that stands still for longer writes the
    stacks of all its threads into ranks/ of its folder and ends with exit code 3. Start-up, the first step (which
    compiles), validation and saves are not timed. null: wait for ever."""
    deterministic: bool = False
    """The same run twice gives the same bits, on a GPU too: torch's deterministic kernels, which are slower; an
    operation that has none ends the run."""
    monitor: str = "val/loss"
    """Metric that decides which checkpoint is best: lower is better for a loss, higher for all else."""
    load_best: bool = False
    """Export the best checkpoint's weights, not the last step's."""
    log_every_steps: int = 5
    """Optimiser steps between reads of the loss from the device. Each step still has its row in metrics.jsonl."""
    measure_peak: bool = False
    """Measure this machine's matrix products at the start, for a second, and give MFU against them as well."""
    debug_syncs: bool = False
    """Count how often a step makes the host wait for the GPU, and log where. Slows the run; for a GPU only."""
    profile_steps: list[int] | None = None
    """First and last optimiser step to profile, counted from 1: [5,8]. Writes profile/ into the run folder."""
    resume: str | None = None
    """Run folder to go on with, or auto: this run's own folder, if it holds a checkpoint; of several, the newest one
    that is whole."""
    force_resume: bool = False
    """Go on although config or data are not those that the run was started with: the differences are only shown. What
    comes of it is no run that could be repeated."""

    weights_from: str | None = None
    """Begin with the trained weights of another run of the same tuner and freeze policy: its folder (the last
    checkpoint), or one of its checkpoints. Optimiser, schedule and data begin anew."""

    def __post_init__(self) -> None:
        counts = (
            "batch_size",
            "accumulate",
            "devices",
            "nodes",
            "val_batch_size",
            "keep_checkpoints",
            "log_every_steps",
            "max_nonfinite",
        )
        for key in counts:
            if getattr(self, key) < 1:
                raise reject(f"trainer.{key}", getattr(self, key), "must be 1 or more")
        for key in ("max_steps", "val_every_steps", "save_every_steps"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise reject(f"trainer.{key}", getattr(self, key), "must be 1 or more, or null")
        if not 0 < self.max_epochs < math.inf:
            raise reject("trainer.max_epochs", self.max_epochs, "must be more than 0, and finite")
        if not 0 < self.ddp_timeout_s < 10**9:
            raise reject("trainer.ddp_timeout_s", self.ddp_timeout_s, "must be more than 0 seconds, and below 10^9")
        if self.watchdog_s is not None and not 0 < self.watchdog_s < 10**9:
            raise reject("trainer.watchdog_s", self.watchdog_s, "must be more than 0 seconds, or null to wait for ever")
        if self.spike_mads is not None and not 0 < self.spike_mads < math.inf:
            raise reject("trainer.spike_mads", self.spike_mads, "must be more than 0, or null to look for no spikes")
        if self.ddp_backend is not None and self.world_size == 1:
            raise reject("trainer.ddp_backend", self.ddp_backend.name, "needs several processes: set trainer.devices")
        if self.neftune_alpha is not None and not 0 < self.neftune_alpha < math.inf:
            raise reject("trainer.neftune_alpha", self.neftune_alpha, "must be more than 0, or null for no noise")
        if (span := self.profile_steps) is not None and not (len(span) == 2 and 1 <= span[0] <= span[1]):
            raise reject("trainer.profile_steps", span, "must be two steps, the first and the last, from 1: [5,8]")
        if not self.checkpoints:
            for key in ("load_best", "save_every_steps", "async_save"):
                if getattr(self, key):
                    raise reject(f"trainer.{key}", getattr(self, key), "needs trainer.checkpoints=true")
            if self.keep_checkpoints != 2:
                raise reject("trainer.keep_checkpoints", self.keep_checkpoints, "needs trainer.checkpoints=true")
        if self.max_nonfinite != 10 and self.on_nonfinite is OnNonfinite.stop:
            raise reject("trainer.max_nonfinite", self.max_nonfinite, "needs trainer.on_nonfinite=skip")
        if self.force_resume and self.resume is None:
            raise reject("trainer.force_resume", "true", "has no effect without trainer.resume")
        if self.monitor not in METRICS:
            raise reject("trainer.monitor", self.monitor, f"known: {', '.join(METRICS)}")

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.devices * self.nodes


@register("trainer", StandardConfig)
def build(
    config: StandardConfig, max_steps: int, precision: str, callbacks: list[Any], strategy: Any = "auto"
) -> "lightning.Trainer":
    """Makes Lightning's Trainer.

    Lightning's own validation, checkpoints, logging and progress bar stay off: see `harness.trainer.callback`. Its
    notion of an epoch stays off as well: the loader is one stream of batches, whose position is the global step.

    Args:
        config: The trainer config.
        max_steps: Optimiser steps in the whole run.
        precision: bf16, fp16 or fp32.
        callbacks: In the order in which they act on a step.
        strategy: Lightning's, or its name.
    """
    import lightning
    from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    return lightning.Trainer(
        accelerator=pick_accelerator(config),
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy,
        # Ranks are there already, see harness.experiment.ranks, under torch's variables: nothing is left to detect.
        plugins=[TorchElasticEnvironment() if config.world_size > 1 else LightningEnvironment()],
        precision={"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[precision],  # type: ignore[arg-type]
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        callbacks=callbacks,
        logger=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def training_device(config: StandardConfig, rank: int) -> "torch.device":
    """Returns where a rank trains.

    Raises:
        UserError: As for `pick_accelerator`.
    """
    import torch

    return torch.device("cuda", rank) if pick_accelerator(config) == "gpu" else torch.device("cpu")


def no_gpu() -> UserError:
    """Returns what is said where trainer.accelerator=gpu finds none."""
    return reject("trainer.accelerator", "gpu", "torch sees no GPU here; use cpu or auto")


def pick_accelerator(config: StandardConfig) -> str:
    """Returns gpu or cpu.

    Raises:
        UserError: This machine has not the GPUs asked for.
    """
    import torch

    on_gpu = torch.cuda.is_available() if config.accelerator is Accelerator.auto else config.accelerator.name == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise no_gpu()
    if on_gpu and config.devices > torch.cuda.device_count():
        shown = f"there are {torch.cuda.device_count()} GPUs here"
        hint = "; every task has to see all of its node's: srun --gpus-per-node, without --gpus-per-task"
        raise reject("trainer.devices", config.devices, shown + (hint if "SLURM_STEP_ID" in os.environ else ""))
    return "gpu" if on_gpu else "cpu"
