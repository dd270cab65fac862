"""Counts tokens, samples and seconds, and gives them as rates with the unit in the name."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.data.batch import Batch

WARMUP_STEPS = 3
"""Optimiser steps left out of the steady-state rate: allocator, caches and compilation settle in them."""


@dataclass(slots=True)
class Totals:
    """What a span of training went through, on this rank."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    visual: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, other: "Totals") -> None:
        """Adds another span to this one, in place."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def rates(self, world_size: int) -> dict[str, float]:
        """Returns `perf/...` metrics over all ranks, taken as equal to this one."""
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


@dataclass(slots=True)
class Meter:
    """Accumulates over micro-batches, steps and log intervals; counts are host integers, so nothing waits for a GPU."""

    total: Totals = field(default_factory=Totals)
    """Since the start of this process."""
    steady: Totals = field(default_factory=Totals)
    """The same without the first WARMUP_STEPS steps."""
    step_has_images: bool = False
    """Whether the current optimiser step has seen an image so far."""
    _interval: Totals = field(default_factory=Totals)
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

    def end_step(self) -> Tensor:
        """Closes an optimiser step and returns its loss on this rank, still on the device."""
        loss = torch.stack(self._losses).sum()
        self._losses.clear()
        self.step_has_images = False
        self._interval.steps += 1
        return loss

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what runs inside: validation, saving, start-up."""
        self._read_clock()
        yield
        self._clock = time.perf_counter()

    def end_interval(self, wait_seconds: float) -> Totals:
        """Closes a log interval and returns it.

        Args:
            wait_seconds: Time the loop stood waiting for data in it.
        """
        self._read_clock()
        interval, self._interval = self._interval, Totals()
        interval.wait_seconds = wait_seconds
        if self.total.steps >= WARMUP_STEPS:
            self.steady.add(interval)
        self.total.add(interval)
        return interval

    def _read_clock(self) -> None:
        now = time.perf_counter()
        self._interval.seconds += now - self._clock
        self._clock = now
