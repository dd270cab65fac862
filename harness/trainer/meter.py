"""Counts tokens, samples, FLOPs and seconds, and gives them as rates with the unit in the name."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.data.batch import Batch
from harness.trainer.flops import Costs
from harness.trainer.host_sync import SyncCounter
from harness.trainer.peak import Peaks

Means = Callable[[Sequence[float]], list[float]]
WARMUP_STEPS = 3
"""Optimiser steps left out of the steady-state rate: allocator, caches and compilation settle in them."""


@dataclass(slots=True)
class Totals:
    """What a span of training went through, on this rank; closed intervals have averages over ranks."""

    steps: int = 0
    samples: float = 0
    tokens: float = 0
    supervised: float = 0
    visual: float = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    needed_flops: float = 0.0
    done_flops: float = 0.0
    """With padding and recomputation; see `harness.trainer.flops`."""
    oom_replays: int = 0
    """Steps that ran out of memory and were taken anew; see `harness.trainer.replay`."""

    def add(self, other: "Totals") -> None:
        """Adds another span to this one, in place."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def average(self, means: Means) -> None:
        """Takes averages over ranks in the place of this one's counts; its clock stays."""
        names = ("samples", "tokens", "supervised", "visual", "needed_flops", "done_flops")
        for name, mean in zip(names, means([getattr(self, name) for name in names]), strict=True):
            setattr(self, name, mean)

    def rates(self, world_size: int) -> dict[str, float]:
        """Returns `perf/...` metrics over so many ranks, from averages of theirs."""
        seconds = max(self.seconds, 1e-9)
        per_second = {
            "perf/tokens_per_s": self.tokens,
            "perf/supervised_tokens_per_s": self.supervised,
            "perf/visual_tokens_per_s": self.visual,
            "perf/samples_per_s": self.samples,
        }
        return {name: count * world_size / seconds for name, count in per_second.items()} | {
            "perf/step_time_s": self.seconds / max(self.steps, 1),
            "perf/data_wait_fraction": min(self.wait_seconds / seconds, 1.0),
        }

    def use(self, peaks: Peaks) -> dict[str, float]:
        """Returns `perf/...` metrics of what of a device's products is made use of, by what is known of the device."""
        needed, done = (flops / max(self.seconds, 1e-9) / 1e12 for flops in (self.needed_flops, self.done_flops))
        metrics = {"perf/model_tflop_per_s": needed}
        if peaks.sheet is not None:
            metrics |= {"perf/mfu": needed / peaks.sheet, "perf/hfu": done / peaks.sheet}
        if peaks.measured is not None:
            metrics["perf/mfu_of_measured_peak"] = needed / peaks.measured
        return metrics


@dataclass(slots=True)
class Meter:
    """Accumulates over micro-batches, steps and log intervals; counts are host integers, so nothing waits for a GPU."""

    total: Totals = field(default_factory=Totals)
    """Of the whole run, the attempts before this process included."""
    steady: Totals = field(default_factory=Totals)
    """The same of this process alone, without its first WARMUP_STEPS steps and without intervals with compilation."""
    costs: Costs | None = None
    """What a batch costs; None counts no FLOPs."""
    peaks: Peaks = field(default_factory=Peaks)
    syncs: SyncCounter | None = None
    """Counts waits for the GPU in a debugging run."""
    step_has_images: bool = False
    """Whether the current optimiser step has seen an image so far."""
    _interval: Totals = field(default_factory=Totals)
    _before: Totals = field(default_factory=Totals)
    """The interval's counts where the current step began."""
    _steps: int = 0
    """Of this process."""
    _graphs: int = 0
    """Compiled at the end of the last interval."""
    _losses: list[Tensor] = field(default_factory=list)
    _clock: float = field(default_factory=time.perf_counter)

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Counts a micro-batch.

        Args:
            batch: The micro-batch.
            loss: Its share of the step's loss on this rank, detached (scalar).
        """
        self._losses.append(loss)
        self.step_has_images |= batch.num_visual > 0
        self._interval.samples += batch.num_samples
        self._interval.tokens += batch.num_tokens
        self._interval.supervised += batch.num_supervised
        self._interval.visual += batch.num_visual
        if self.costs is not None:
            needed, done = self.costs.of(batch)
            self._interval.needed_flops += needed
            self._interval.done_flops += done

    def begin_step(self) -> None:
        """Notes the counts at the start of an optimiser step, for `rewind`."""
        self._before = replace(self._interval)

    def rewind(self) -> None:
        """Forgets what was counted since `begin_step`, for the step is taken anew, which is counted too."""
        self._before.oom_replays += 1
        self._interval = replace(self._before)
        self._losses.clear()
        self.step_has_images = False

    @property
    def step_loss(self) -> Tensor:
        """The step's loss so far on this rank, still on the device."""
        return torch.stack(self._losses).sum()

    def end_step(self) -> Tensor:
        """Closes an optimiser step and returns its loss on this rank, still on the device."""
        loss = self.step_loss
        self._losses.clear()
        self.step_has_images = False
        self._interval.steps += 1
        return loss

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what runs inside: validation, saving, start-up."""
        self._read_clock()
        with nullcontext() if self.syncs is None else self.syncs.paused():
            yield
        self._clock = time.perf_counter()

    def end_interval(self, wait_seconds: float, means: Means | None = None) -> Totals:
        """Closes a log interval and returns it.

        Args:
            wait_seconds: Time the loop stood waiting for data in it.
            means: Averages values over ranks, which all call this; None: there is one.
        """
        self._read_clock()
        interval, self._interval = self._interval, Totals()
        if means is not None:
            interval.average(means)
        interval.wait_seconds = wait_seconds
        graphs, before = _compiled_graphs(), self._graphs
        if self._steps >= WARMUP_STEPS and graphs == before:
            self.steady.add(interval)
        self._steps, self._graphs = self._steps + interval.steps, graphs
        self.total.add(interval)
        return interval

    def metrics(self, interval: Totals) -> dict[str, float]:
        """Returns `perf/...` metrics of an interval beside its rates: use of the device, waits for it."""
        waits = {} if self.syncs is None else {"perf/host_syncs": self.syncs.take() / max(interval.steps, 1)}
        return interval.use(self.peaks) | waits

    def _read_clock(self) -> None:
        now = time.perf_counter()
        self._interval.seconds += now - self._clock
        self._clock = now


def _compiled_graphs() -> int:
    """Returns how many graphs torch has compiled in this process, without importing the compiler."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else dynamo.counters["stats"]["unique_graphs"]
