"""Runs the making of batches in worker processes, and numbers them in optimiser steps."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from harness.data.batch import Batch, PromptBatch
from harness.data.collator import collate, collate_packed, collate_prompts
from harness.data.encoding import EncodedSample, Encoder, PromptSample
from harness.data.order import micro_batches
from harness.data.packing import Packing
from harness.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MakeBatch:
    """Makes the training or validation batch of some rows."""

    samples: Sequence[EncodedSample]
    encoder: Encoder

    def __call__(self, rows: list[int]) -> Batch:
        """Decodes the rows' images and joins the samples."""
        return collate([self.encoder.load(self.samples[row]) for row in rows], self.encoder.pad_token_id)


@dataclass(frozen=True, slots=True)
class MakePacked:
    """Makes the training batch of some packs."""

    samples: Sequence[EncodedSample]
    encoder: Encoder
    packing: Packing

    def __call__(self, numbers: list[int]) -> Batch:
        """Decodes the images of the packs' samples and joins them."""
        packs = [[self.encoder.load(self.samples[row]) for row in self.packing.packs[number]] for number in numbers]
        if not self.packing.one_row:
            return collate_packed(packs, self.encoder.pad_token_id, self.packing.length)
        length = None if self.packing.length is None else self.packing.length * len(packs)
        joined = [item for pack in packs for item in pack]
        return collate_packed([joined], self.encoder.pad_token_id, length)


@dataclass(frozen=True, slots=True)
class MakePrompts:
    """Makes the batch of prompts of some rows."""

    prompts: Sequence[PromptSample]
    encoder: Encoder

    def __call__(self, rows: list[int]) -> PromptBatch:
        """Decodes the rows' images and joins the prompts."""
        chosen = [self.prompts[row] for row in rows]
        loaded = [self.encoder.load(prompt.sample) for prompt in chosen]
        pad, image = self.encoder.pad_token_id, self.encoder.image_token_id
        return collate_prompts(chosen, loaded, rows, pad_token_id=pad, image_token_id=image)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A user's mistake on its way out of a worker; raised there, it would arrive wrapped in a traceback."""

    message: str


class _Batches(Dataset, Generic[T]):
    """A data set whose items are whole batches, asked for by lists of rows."""

    def __init__(self, make: Callable[[list[int]], T]) -> None:
        self._make = make

    def __getitem__(self, rows: list[int]) -> T | _Failure:
        try:
            return self._make(rows)
        except UserError as error:
            return _Failure(str(error))


def load(make: Callable[[list[int]], T], plan: Iterable[list[int]], workers: int) -> Iterator[T]:
    """Yields the batch of each list of rows, in order, made ahead in worker processes.

    Args:
        make: Makes one batch; runs in a worker, on CPU tensors.
        plan: Rows of each batch; may be endless.
        workers: Processes; 0 makes each batch when it is asked for.

    Raises:
        UserError: A batch can not be made; the message is that of the worker's error.
    """
    loader = DataLoader(
        _Batches(make),
        sampler=plan,
        batch_size=None,
        collate_fn=_identity,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the loader draws a seed for its workers, which would move the run's global one.
        generator=torch.Generator(),
    )
    for batch in _start(loader):
        if isinstance(batch, _Failure):
            raise UserError(batch.message)
        yield batch


def _start(loader: DataLoader) -> Iterator:
    with warnings.catch_warnings():
        # From 3.12 on Python warns of each fork in a process with threads. Workers only decode, with PIL and NumPy,
        # which hold no lock that another thread could have held; spawning would load torch anew in each.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return iter(loader)


def _identity(batch: T) -> T:
    return batch


class StepLoader:
    """The training batches of one rank, from a given micro-batch on; has no length."""

    def __init__(
        self,
        samples: Sequence[EncodedSample],
        encoder: Encoder,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        world_size: int,
        rank: int,
        shuffle: bool,
        workers: int,
        start: int,
        num_batches: int,
        packing: Packing | None = None,
    ) -> None:
        """Takes what `order.micro_batches` takes.

        Args:
            samples: Rows of an epoch.
            encoder: Decodes their images.
            seed: The run's.
            batch_size: Samples of a micro-batch on one rank.
            accumulate: Micro-batches of an optimiser step.
            world_size: Ranks that share the data.
            rank: Which of them this is.
            shuffle: New order each epoch.
            workers: Processes that decode.
            start: Micro-batches already consumed, a multiple of `accumulate`.
            num_batches: Micro-batches to yield.
            packing: Packs take the place of samples in the order; None pads each sample.
        """
        assert start % accumulate == 0, "a run resumes between optimiser steps"
        self._make: Callable[[list[int]], Batch]
        if packing is None:
            self._make = MakeBatch(samples, encoder)
            self._supervised = [sample.num_supervised for sample in samples]
        else:
            self._make = MakePacked(samples, encoder, packing)
            self._supervised = [sum(samples[row].num_supervised for row in pack) for pack in packing.packs]
        self._order = (seed, len(self._supervised), batch_size, world_size, rank, shuffle, start)
        self._accumulate = accumulate
        self._workers = workers
        self._num_batches = num_batches
        self._wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches with `step_supervised` set.

        The plan knows each sample's supervised tokens, so the step's sum needs no look at the batches ahead: workers
        stay at most a few batches ahead, whatever the accumulation.
        """
        plan, counted = tee(islice(micro_batches(*self._order), self._num_batches))
        batches = load(self._make, plan, self._workers)
        while step := list(islice(counted, self._accumulate)):
            total = sum(self._supervised[unit] for units in step for unit in units)
            for _ in step:
                batch = self._next(batches)
                batch.step_supervised = total
                yield batch

    def take_wait_seconds(self) -> float:
        """Returns the seconds spent waiting for workers since the last call."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

    def _next(self, batches: Iterator[Batch]) -> Batch:
        begun = time.perf_counter()
        batch = next(batches)
        self._wait_seconds += time.perf_counter() - begun
        return batch
