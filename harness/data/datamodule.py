"""Knows all rows before training and hands out training, validation and prompt batches."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch

from harness.data.account import Account
from harness.data.batch import Batch, PromptBatch
from harness.data.config import DataConfig, OnError
from harness.data.extent import Extent
from harness.data.features.lookup import Lookup
from harness.data.index.build import build
from harness.data.index.samples import SampleIndex, index
from harness.data.index_plan import IndexPlan
from harness.data.layout import PADDED, Layout, training_layout
from harness.data.loader import MakeBatch, MakePrompts, Planned, StepLoader, load
from harness.data.row import Rows, RowStream, Sources
from harness.data.row_error import RowError
from harness.data.stream_plan import StreamPlan
from harness.data.template.encoder import Encoder, PromptSample
from harness.data.template.text import channel_key
from harness.errors import UserError, reject
from harness.logging.setup import FILE_ONLY

if TYPE_CHECKING:
    from harness.model.feature_cache import FeatureCache

log = logging.getLogger(__name__)


class DataModule(L.LightningDataModule):
    """The data of one run. The trainer sets `start_step` and `total_steps` before it fits."""

    def __init__(
        self,
        sources: Sources,
        encoder: Encoder,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        val_batch_size: int,
        key: str,
        sequence_parallel: int = 1,
    ) -> None:
        """Keeps its arguments; `prepare` does the work.

        Args:
            sources: What the data set's builder returned.
            encoder: With the checkpoint's tokenizer and image processor.
            config: Settings of the data group.
            seed: The run's; orders the training rows.
            batch_size: Units (samples or packs) of a micro-batch on one rank.
            accumulate: Micro-batches of an optimiser step.
            val_batch_size: Samples of a validation batch on one rank, at most.
            key: Hash of what token ids depend on besides the rows.
            sequence_parallel: Ranks, neighbours, that share a batch. Below, ranks and their number are the run's.
        """
        super().__init__()
        self.start_step = 0
        """Optimiser steps already done."""
        self.total_steps = 0
        """Optimiser steps of the whole run."""
        self.fingerprint = sources.fingerprint
        """Hash of the rows and, once prepared, of the sizes of the media files that they name."""
        self.accounts: dict[str, Account] = {}
        """What became of the rows of each split."""
        self.encoder = encoder
        self.train_samples: SampleIndex | None = None
        """None of a stream."""
        self.val_samples: SampleIndex | None = None
        self.prompts: list[PromptSample] = []
        self.features: FeatureCache | None = None
        """The cache of a frozen vision tower's features, which is there once the model is."""
        self.current: Batch | None = None
        """The micro-batch that the trainer has at hand, on the CPU, for a step that has to be taken anew."""
        self._sources = sources
        self._config = config
        self._skip = config.on_error is OnError.skip
        self._seed = seed
        self._batch_size = batch_size
        self._accumulate = accumulate
        self._val_batch_size = val_batch_size
        self._key = key
        self._sharers = sequence_parallel
        self._plan: IndexPlan | None = None
        """Of known rows; None of a stream."""
        self._loader: StepLoader | None = None
        self._ready: StepLoader | None = None
        """Started, and not yet asked for by the trainer."""

    def prepare(self) -> None:
        """Looks at every row's text and at its image headers, so that a bad one ends the run before it begins.

        Raises:
            UserError: A row can not be used, or none is left.
        """
        if self.accounts:
            return
        config, sources = self._config, self._sources
        if config.generation.enabled and not len(sources.val):
            raise reject("data.generation.enabled", "true", "there are no validation rows to answer")
        if isinstance(sources.train, RowStream):
            self.accounts["train"] = Account(0)
        else:
            self.train_samples = self._index("train", sources.train)
            _check_channels(config.channels, self.train_samples)
            self._plan = IndexPlan.of(self.train_samples, config, self._seed, self._batch_size, self._accumulate)
        if len(sources.val):
            self.val_samples = self._index("val", sources.val)
            if config.generation.enabled:
                self.prompts = self._prompts(self.val_samples)

    @property
    def shows_something(self) -> bool:
        """Whether some training row has an image or video; a stream may."""
        return self.train_samples is None or self.accounts["train"].visual_tokens > 0

    def steps(self, epochs: float, world_size: int) -> int:
        """Optimiser steps in which every training row is seen `epochs` times; of a stream, all steps of the run."""
        return self.total_steps if self._plan is None else self._plan.steps(epochs, world_size // self._sharers)

    def train_dataloader(self) -> StepLoader:
        """Returns this rank's batches from `start_step` to `total_steps`, with workers that were started before."""
        ready, self._ready = self._ready, None
        if ready is None:
            assert self.trainer is not None, "the trainer asks for the loader"
            ready = self._make_loader(self.trainer.global_rank, self.trainer.world_size)
        self._loader = ready
        return ready

    def start_workers(self, rank: int, world_size: int) -> None:
        """Begins to make training batches; `start_step` and `total_steps` are set.

        Args:
            rank: This process's.
            world_size: Number of processes.
        """
        self._ready = self._make_loader(rank, world_size)
        self._ready.start()

    def stop_workers(self) -> None:
        """Ends what `start_workers` started, where training did not take it."""
        for loader in (self._ready, self._loader):
            if loader is not None:
                loader.stop()

    def step_batches(self, step: int, rank: int, world_size: int) -> list[Batch]:
        """Makes the micro-batches of an optimiser step anew, in this process and with all pixels; counts nothing.

        Of a stream, what comes before is read again.

        Args:
            step: Number of the step, from 1.
            rank: Whose.
            world_size: Number of processes.
        """
        first = (step - 1) * self._accumulate
        layout = self._shared(training_layout(self._config), rank)
        loader = StepLoader(
            MakeBatch(self.train_samples, self.encoder, layout, self._skip),
            self._micro_batches(rank, world_size, first, Account(0)),
            accumulate=self._accumulate,
            num_batches=self._accumulate,
            workers=0,
            on_skipped=lambda skipped: None,
        )
        return list(loader)

    def _micro_batches(self, rank: int, world_size: int, first: int, account: Account) -> Iterator[Planned]:
        """Yields the plan from a micro-batch on; the account is for the rows of a stream."""
        plan = self._stream(account) if self._plan is None else self._plan
        return plan.micro_batches(*self._reader(rank, world_size), first)

    def _make_loader(self, rank: int, world_size: int) -> StepLoader:
        if self.train_samples is None:
            self.accounts["train"] = Account(0)
        layout = self._shared(training_layout(self._config), rank)
        return StepLoader(
            MakeBatch(self.train_samples, self.encoder, layout, self._skip, self._lookup()),
            self._micro_batches(rank, world_size, self.start_step * self._accumulate, self.accounts["train"]),
            accumulate=self._accumulate,
            num_batches=(self.total_steps - self.start_step) * self._accumulate,
            workers=self._config.workers,
            prefetch=self._config.prefetch,
            on_skipped=self._leave_out("train"),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies without waiting: batches come from page-locked memory, and a GPU works through them in order."""
        self.current = batch
        return batch.to(device, non_blocking=True)

    def resize(self, batch_size: int, accumulate: int) -> None:
        """Deals the rows of a step out in other micro-batches; before workers start.

        Args:
            batch_size: Units of a micro-batch on one rank.
            accumulate: Micro-batches of a step, so that it has as many rows as before.
        """
        assert batch_size * accumulate == self._batch_size * self._accumulate and self._ready is None
        self._batch_size, self._accumulate = batch_size, accumulate
        if self._plan is not None:
            self._plan = replace(self._plan, batch_size=batch_size, accumulate=accumulate)

    def largest_batch(self, batch_size: int | None = None) -> Extent | None:
        """Returns bounds on the micro-batches of training; None where they are a stream's without a bound.

        Args:
            batch_size: Units of a micro-batch on one rank; None: as set.
        """
        size = batch_size or self._batch_size
        if self._plan is not None:
            return self._plan.extent(size)
        tokens = self._config.pack_length() or self._config.max_tokens_per_batch or self._config.max_length
        return None if tokens is None else Extent(size * tokens, size * tokens, size * tokens)

    def largest_planned(self, rank: int, world_size: int) -> list[Batch]:
        """Makes those micro-batches of the steps to come, of an epoch at most, that have most tokens and most to see.

        Of a stream there are none. The loader's own position does not move.
        """
        if self._plan is None:
            return []
        start, steps = self.start_step, min(self.total_steps - self.start_step, self.steps(1, world_size))
        reader = self._reader(rank, world_size)
        planned = self._plan.largest(*reader, start * self._accumulate, steps * self._accumulate)
        make = MakeBatch(self.train_samples, self.encoder, training_layout(self._config), self._skip)
        return [make(largest.units) for largest in planned]

    def largest_val(self, rank: int, world_size: int) -> Batch | None:
        """Makes the validation batch of most tokens; None without validation rows."""
        if (samples := self.val_samples) is None:
            return None
        plan = _deal(samples.lengths, self._val_batch_size, rank, world_size)
        if not plan:
            return None
        rows = max(plan, key=lambda rows: len(rows) * int(samples.lengths[rows].max()))
        return MakeBatch(samples, self.encoder, PADDED, self._skip)([rows])

    def gather_left_out(self) -> None:
        """Counts on every rank what any rank had to leave out; all ranks call it together."""
        mine = {split: account.left_out for split, account in self.accounts.items()}
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        for theirs in everyone:
            for split, skipped in theirs.items():
                self.accounts[split].leave_out(skipped)

    def take_wait_seconds(self) -> float:
        """Returns the seconds that training stood waiting for workers since the last call."""
        return self._loader.take_wait_seconds() if self._loader is not None else 0.0

    def calibration_batches(self, num_batches: int, batch_size: int, max_length: int | None) -> Iterator[Batch]:
        """Yields batches of training samples on the CPU, the same ones at each call: for initialisation from data.

        Args:
            num_batches: How many at most; fewer where the samples end.
            batch_size: Samples of each.
            max_length: Longer samples are passed over; None takes all.

        Raises:
            UserError: The training rows are a stream, or none of them is short enough.
        """
        if self.train_samples is None:
            raise reject("data.streaming", "true", "an initialisation from data looks at rows before training")
        lengths = self.train_samples.lengths
        order = np.random.default_rng(self._seed).permutation(len(lengths))
        fitting = order[lengths[order] <= (max_length or lengths.max())][: num_batches * batch_size].tolist()
        if not fitting:
            raise UserError(f"no training row has at most {max_length} tokens, and the tuner's start needs some")
        make = MakeBatch(self.train_samples, self.encoder, PADDED, self._skip)
        for start in range(0, len(fitting), batch_size):
            batch = make([fitting[start : start + batch_size]])
            batch.step_supervised = batch.num_supervised
            yield batch

    def val_batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Yields this rank's share of all validation rows, longest first, each row on one rank only.

        Ranks get equally many batches unless there are too few rows for that, when the last ranks get one batch less.
        """
        assert self.val_samples is not None
        plan = _deal(self.val_samples.lengths, self._val_batch_size, *self._reader(rank, world_size))
        make = MakeBatch(self.val_samples, self.encoder, self._shared(PADDED, rank), self._skip, self._lookup())
        leave_out = self._leave_out("val")
        for batch in load(make, ([rows] for rows in plan), self._config.workers):
            leave_out(batch.skipped)
            yield batch

    def prompt_batches(self, rank: int, world_size: int) -> Iterator[PromptBatch]:
        """Yields this rank's share of the prompts, longest first; none unless generation is enabled."""
        lengths = np.array([len(prompt.sample.ids) for prompt in self.prompts], dtype=np.int64)
        plan = _deal(lengths, self._val_batch_size, rank, world_size)
        made = load(MakePrompts(self.prompts, self.encoder, self._skip), plan, self._config.workers)
        yield from (batch for batch in made if batch is not None)

    def _reader(self, rank: int, world_size: int) -> tuple[int, int]:
        """Returns which reader of batches a rank is, and of how many: neighbours may share theirs."""
        return rank // self._sharers, world_size // self._sharers

    def _shared(self, layout: Layout, rank: int) -> Layout:
        return layout if self._sharers == 1 else replace(layout, shared=(rank % self._sharers, self._sharers))

    def _lookup(self) -> Lookup | None:
        return None if self.features is None else self.features.lookup

    def _index(self, split: str, rows: Rows) -> SampleIndex:
        account = self.accounts[split] = Account(len(rows))
        cache = None if self._config.cache_dir is None else Path(self._config.cache_dir) / "rows"
        workers, stop = self._config.index_workers, not self._skip
        found = build(rows, self.encoder.text, what=split, key=self._key, cache=cache, workers=workers, stop=stop)
        sizes = np.ascontiguousarray(found.arrays.stamps[:, 0]).tobytes()
        self.fingerprint = hashlib.sha256(self.fingerprint.encode() + sizes).hexdigest()
        samples = index(rows, found, self.encoder, account)
        for _, error in sorted(found.errors.items()):
            log.warning("%s: skipped %s", split, error, extra={FILE_ONLY: True})
        log.info("%s: %s", split, account.text())
        if not len(samples):
            left = ", ".join(filter(None, (account.skipped.text(), account.dropped.text())))
            raise UserError(f"no {split} row is left of {len(rows):,}: {left or 'there are none'}")
        return samples

    def _stream(self, account: Account) -> StreamPlan:
        stream = self._sources.train
        assert isinstance(stream, RowStream)
        return StreamPlan(stream, self.encoder, self._config, self._skip, self._seed, self._batch_size, account)

    def _prompts(self, samples: SampleIndex) -> list[PromptSample]:
        prompts: list[PromptSample] = []
        for number in dict.fromkeys(samples.row.tolist()):
            if len(prompts) == self._config.generation.max_samples:
                break
            try:
                prompts.append(self.encoder.encode_prompt(samples.rows[number]))
            except RowError:
                if not self._skip:
                    raise
        return prompts

    def _leave_out(self, split: str) -> Callable[[Sequence[tuple[str, str, str]]], None]:
        def tell(skipped: Sequence[tuple[str, str, str]]) -> None:
            for message in self.accounts[split].leave_out(skipped):
                log.warning("%s: skipped %s", split, message)

        return tell


def _check_channels(names: Sequence[str], samples: SampleIndex) -> None:
    there = set(np.unique(samples.store.arrays.channels[samples.row]).tolist())
    for name in names:
        if channel_key(name) not in there:
            raise reject("data.channels", name, "no training row has this channel; the doctor counts those there are")


def _deal(lengths: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Deals rows, longest first, into batches of nearly equal numbers of rows, equally many for each rank."""
    order = np.argsort(-lengths, kind="stable").tolist()
    rounds = -(-len(order) // (batch_size * world_size))
    num_batches = min(rounds * world_size, len(order))
    bounds = [len(order) * i // num_batches for i in range(num_batches + 1)] if order else []
    return [order[low:high] for low, high in pairwise(bounds)][rank::world_size]
