"""Runs the making of batches in worker processes, and numbers them in optimiser steps.

A signal that asks a run to end often goes to all of its processes: SLURM, `timeout` and a terminal's Ctrl-C send it so.
Workers pay no heed to it, for the run has a step to finish, and end with the loader or with the process.
"""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from harness.data.batch import Batch, PromptBatch
from harness.data.collator import collate_prompts
from harness.data.features.lookup import Lookup
from harness.data.index.samples import Samples
from harness.data.layout import Layout
from harness.data.row_error import RowError
from harness.data.template.encoder import EncodedSample, Encoder, LoadedSample, PromptSample
from harness.errors import UserError
from harness.trainer.stop import SIGNALS

T = TypeVar("T")

Units = Sequence[Any]
"""A micro-batch before it is made: units of sample numbers, or of samples."""


@dataclass(frozen=True, slots=True)
class MakeBatch:
    """Makes the training or validation batch of some units."""

    samples: Samples | None
    """What numbers stand for; None where the units hold the samples themselves."""
    encoder: Encoder
    layout: Layout
    skip: bool
    """Leave out a sample whose media can not be decoded, instead of ending the run."""
    lookup: Lookup | None = None
    """The cache of the vision tower's features; None decodes everything."""

    def __call__(self, units: Units) -> Batch:
        """Decodes what the samples show and lays them out.

        Raises:
            RowError: A sample can not be loaded, without `skip`.
        """
        skipped: list[tuple[str, str, str]] = []
        packs: list[list[LoadedSample]] = []
        for unit in units:
            packs.append([])
            for item in unit:
                try:
                    sample: EncodedSample = item if self.samples is None else self.samples[int(item)]
                    packs[-1].append(self.encoder.load(sample, self.lookup))
                except RowError as error:
                    if not self.skip:
                        raise
                    skipped.append((error.origin, error.reason, error.detail))
        batch = self.layout.collate(packs, self.encoder)
        batch.skipped = skipped
        return batch


@dataclass(frozen=True, slots=True)
class MakePrompts:
    """Makes the batch of prompts of some rows; None where no row of them can be loaded."""

    prompts: Sequence[PromptSample]
    encoder: Encoder
    skip: bool

    def __call__(self, rows: list[int]) -> PromptBatch | None:
        """Decodes what the prompts show and joins them."""
        loaded: dict[int, LoadedSample] = {}
        for row in rows:
            try:
                loaded[row] = self.encoder.load(self.prompts[row].sample)
            except RowError:
                # The row's validation batch counts and names it.
                if not self.skip:
                    raise
        if not loaded:
            return None
        chosen = [self.prompts[row] for row in loaded]
        text, pad_token_id = self.encoder.text, self.encoder.pad_token_id
        return collate_prompts(chosen, list(loaded.values()), list(loaded), text=text, pad_token_id=pad_token_id)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A user's mistake on its way out of a worker; raised there, it would arrive wrapped in a traceback."""

    message: str


class _Batches(Dataset, Generic[T]):
    """A data set whose items are whole batches, asked for by what they are to hold."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    def __getitem__(self, asked: Any) -> T | _Failure:
        try:
            return self._make(asked)
        except UserError as error:
            return _Failure(str(error))


def load(make: Callable[[Any], T], plan: Iterable[Any], workers: int, prefetch: int = 2) -> Iterator[T]:
    """Starts workers and returns the batch of each entry of a plan, in order, made ahead in these processes.

    Args:
        make: Makes one batch; runs in a worker, on CPU tensors.
        plan: What each batch is to hold; may be endless.
        workers: Processes; 0 makes each batch when it is asked for.
        prefetch: Batches that each of them makes ahead.

    Raises:
        UserError: A batch can not be made; the message is that of the worker's error.
    """
    loader = DataLoader(
        _Batches(make),
        sampler=plan,  # type: ignore[arg-type]  # any iterable will do without a length
        batch_size=None,
        collate_fn=_identity,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        # A generator of its own: the loader draws a seed for its workers, which would move the run's global one.
        generator=torch.Generator(),
    )
    return _checked(_start(loader))


def _checked(batches: Iterator[T | _Failure]) -> Iterator[T]:
    for batch in batches:
        if isinstance(batch, _Failure):
            raise UserError(batch.message)
        yield batch


def _start(loader: DataLoader) -> Iterator:
    with warnings.catch_warnings():
        # From 3.12 on Python warns of each fork in a process with threads. Workers only decode, with PIL and NumPy,
        # which hold no lock that another thread could have held; spawning would load torch anew in each.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        batches: Any = iter(loader)
    if loader.num_workers:
        # When it is dropped, and at the end of the process, before Python asks workers to end and waits for them.
        Finalize(batches, _kill, args=(batches._workers,), exitpriority=10)
    return batches


def _outlive_signals(worker: int) -> None:
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Ends workers that hang, or that a run which failed has left: they pay no heed to anything less."""
    alive = [worker for worker in workers if worker.is_alive()]
    if not alive or threading.current_thread() is not threading.main_thread():
        return
    # The loader's handler raises an error for each.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in alive:
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, before)


def _identity(batch: T) -> T:
    return batch


@dataclass(frozen=True, slots=True)
class Planned:
    """A micro-batch of the plan."""

    units: Units
    num_supervised: int
    """Supervised tokens in it, if none of it has to be left out."""


class StepLoader:
    """The training batches of one rank; has no length."""

    def __init__(
        self,
        make: MakeBatch,
        plan: Iterable[Planned],
        *,
        accumulate: int,
        num_batches: int,
        workers: int,
        prefetch: int = 2,
        on_skipped: Callable[[list[tuple[str, str, str]]], None],
    ) -> None:
        """Keeps its arguments.

        Args:
            make: Makes a batch; runs in the workers.
            plan: Micro-batches from the first one wanted on.
            accumulate: Micro-batches of an optimiser step.
            num_batches: Micro-batches to yield.
            workers: Processes that decode.
            prefetch: Batches that each of them makes ahead.
            on_skipped: Told of the samples that a batch leaves out.
        """
        self._make = make
        self._plan = plan
        self._accumulate = accumulate
        self._num_batches = num_batches
        self._workers, self._prefetch = workers, prefetch
        self._on_skipped = on_skipped
        self._wait_seconds = 0.0
        self._begun: tuple[Iterator[Planned], Iterator[Batch]] | None = None

    def start(self) -> None:
        """Starts the workers ahead of the iteration, so that its first batches are there when it begins."""
        self._begun = self._begin()

    def stop(self) -> None:
        """Ends workers that were started and are not iterated over."""
        self._begun = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches with `step_supervised` set.

        The plan knows each sample's supervised tokens, so the step's sum needs no look at the batches ahead: workers
        stay at most a few batches ahead, whatever the accumulation. Where samples may be left out, the batches of a
        step are gathered first, and what was left out does not count.
        """
        counted, batches = self._begun or self._begin()
        self._begun = None
        while step := list(islice(counted, self._accumulate)):
            if self._make.skip:
                gathered = [self._next(batches) for _ in step]
                made: Iterable[Batch] = gathered
                total = sum(batch.num_supervised for batch in gathered)
            else:
                made = (self._next(batches) for _ in step)
                total = sum(planned.num_supervised for planned in step)
            for batch in made:
                batch.step_supervised = total
                yield batch

    def _begin(self) -> tuple[Iterator[Planned], Iterator[Batch]]:
        plan, counted = tee(islice(self._plan, self._num_batches))
        return counted, load(self._make, (planned.units for planned in plan), self._workers, self._prefetch)

    def take_wait_seconds(self) -> float:
        """Returns the seconds spent waiting for workers since the last call."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

    def _next(self, batches: Iterator[Batch]) -> Batch:
        begun = time.perf_counter()
        batch = next(batches)
        self._wait_seconds += time.perf_counter() - begun
        if batch.skipped:
            self._on_skipped(batch.skipped)
        return batch
