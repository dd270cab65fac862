"""Encodes all rows up front and hands out training, validation and prompt batches."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import lightning as L

from harness.data.batch import Batch, PromptBatch
from harness.data.config import GenerationConfig
from harness.data.encoding import OVER_MAX_LENGTH, Dropped, EncodedSample, Encoder, PromptSample
from harness.data.loader import MakeBatch, MakePrompts, StepLoader, load
from harness.data.packing import Packing, best_fit, efficiency
from harness.data.row import Row, Sources
from harness.errors import UserError, reject

log = logging.getLogger(__name__)


class DataModule(L.LightningDataModule):
    """The data of one run. The trainer sets `start_step` and `total_steps` before it fits."""

    def __init__(
        self,
        sources: Sources,
        encoder: Encoder,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        val_batch_size: int,
        workers: int,
        shuffle: bool,
        generation: GenerationConfig,
        pack_length: int | None = None,
        padding_free: bool = False,
        one_row: bool = False,
    ) -> None:
        """Keeps its arguments; `prepare` does the work.

        Args:
            sources: What the data set's builder returned.
            encoder: With the checkpoint's tokenizer and image processor.
            seed: The run's; orders the training rows.
            batch_size: Samples of a micro-batch on one rank.
            accumulate: Micro-batches of an optimiser step.
            val_batch_size: Samples of a validation batch on one rank, at most.
            workers: Processes that decode images, on each rank.
            shuffle: New order of the training rows each epoch.
            generation: Which prompts `prompt_batches` gives.
            pack_length: Tokens of a pack of training samples; None: no packing.
            padding_free: Join the training samples of a micro-batch into one row.
            one_row: Join the packs of a micro-batch into one row, as flash-attention kernels need it.
        """
        super().__init__()
        self.start_step = 0
        """Optimiser steps already done."""
        self.total_steps = 0
        """Optimiser steps of the whole run."""
        self.fingerprint = sources.fingerprint
        self.train_samples: list[EncodedSample] = []
        self.val_samples: list[EncodedSample] = []
        self.prompts: list[PromptSample] = []
        self._sources = sources
        self._encoder = encoder
        self._seed = seed
        self._batch_size = batch_size
        self._accumulate = accumulate
        self._val_batch_size = val_batch_size
        self._workers = workers
        self._shuffle = shuffle
        self._generation = generation
        self._loader: StepLoader | None = None
        self._pack_length = pack_length
        self._padding_free = padding_free
        self._one_row = one_row
        self._packing: Packing | None = None

    def prepare(self) -> None:
        """Encodes every row from its text and image headers, so that a bad one ends the run before it begins.

        Raises:
            UserError: A row can not be used, or none is left.
        """
        if self.train_samples:
            return
        if self._generation.enabled and not self._sources.val:
            raise reject("data.generation.enabled", "true", "there are no validation rows to answer")
        self.train_samples, _ = _encode("train", self._sources.train, self._encoder)
        self._packing = self._plan_packing()
        if self._sources.val:
            self.val_samples, kept = _encode("val", self._sources.val, self._encoder)
            if self._generation.enabled:
                self.prompts = [self._encoder.encode_prompt(row) for row in kept[: self._generation.max_samples]]

    def steps_per_epoch(self, world_size: int) -> int:
        """Optimiser steps in which every training row is seen once or more; call `prepare` before."""
        units = len(self._packing.packs) if self._packing else len(self.train_samples)
        return -(-units // (self._batch_size * self._accumulate * world_size))

    def train_dataloader(self) -> StepLoader:
        """Returns this rank's batches from `start_step` to `total_steps`."""
        assert self.trainer is not None, "the trainer asks for the loader"
        self._loader = StepLoader(
            self.train_samples,
            self._encoder,
            seed=self._seed,
            batch_size=self._batch_size,
            accumulate=self._accumulate,
            world_size=self.trainer.world_size,
            rank=self.trainer.global_rank,
            shuffle=self._shuffle,
            workers=self._workers,
            start=self.start_step * self._accumulate,
            num_batches=(self.total_steps - self.start_step) * self._accumulate,
            packing=self._packing,
        )
        return self._loader

    def take_wait_seconds(self) -> float:
        """Returns the seconds that training stood waiting for workers since the last call."""
        return self._loader.take_wait_seconds() if self._loader is not None else 0.0

    def _plan_packing(self) -> Packing | None:
        lengths = [len(sample.ids) for sample in self.train_samples]
        if self._padding_free:
            return Packing(tuple((row,) for row in range(len(lengths))), None, one_row=True)
        if self._pack_length is None:
            return None
        packs = best_fit(lengths, self._pack_length, self._seed)
        share = efficiency(packs, lengths, self._pack_length)
        log.info("packing: %s packs of %s tokens, %.1f %% filled", f"{len(packs):,}", self._pack_length, 100 * share)
        return Packing(packs, self._pack_length, self._one_row)

    def val_batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Yields this rank's share of all validation rows, longest first, each row on one rank only.

        Ranks get equally many batches unless there are too few rows for that, when the last ranks get one batch less.
        """
        plan = _plan(self.val_samples, self._val_batch_size, rank, world_size)
        return load(MakeBatch(self.val_samples, self._encoder), plan, self._workers)

    def prompt_batches(self, rank: int, world_size: int) -> Iterator[PromptBatch]:
        """Yields this rank's share of the prompts, longest first; none unless generation is enabled."""
        plan = _plan([prompt.sample for prompt in self.prompts], self._val_batch_size, rank, world_size)
        return load(MakePrompts(self.prompts, self._encoder), plan, self._workers)


def _encode(split: str, rows: Sequence[Row], encoder: Encoder) -> tuple[list[EncodedSample], list[Row]]:
    """Returns the samples and the rows they came from; logs one line on what they hold."""
    samples, kept, dropped = [], [], []
    for row in rows:
        encoded = encoder.encode(row)
        if isinstance(encoded, Dropped):
            dropped.append(encoded)
        else:
            samples.append(encoded)
            kept.append(row)
    log.info("%s: %s", split, _summary(samples, dropped))
    if not samples:
        raise UserError(f"no {split} row is left of {len(rows)}: {_dropped(dropped)}; raise data.max_length")
    return samples, kept


def _summary(samples: Sequence[EncodedSample], dropped: Sequence[Dropped]) -> str:
    truncated = sum(sample.truncated for sample in samples)
    parts = [
        f"{len(samples):,} rows",
        _dropped(dropped),
        *([f"{truncated:,} truncated"] if truncated else []),
        f"{sum(len(sample.ids) for sample in samples):,} tokens",
        f"{sum(sample.num_visual for sample in samples):,} visual",
        f"{sum(sample.num_supervised for sample in samples):,} supervised",
    ]
    return ", ".join(parts)


def _dropped(dropped: Sequence[Dropped]) -> str:
    if not dropped:
        return f"0 dropped ({OVER_MAX_LENGTH})"
    reasons = Counter(item.reason for item in dropped)
    named = ", ".join(f"{count:,} {reason}" if len(reasons) > 1 else reason for reason, count in reasons.items())
    return f"{len(dropped):,} dropped ({named}; first: {dropped[0].origin})"


def _plan(samples: Sequence[EncodedSample], batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Deals rows, longest first, into batches of nearly equal numbers of rows, equally many for each rank."""
    order = sorted(range(len(samples)), key=lambda row: (-len(samples[row].ids), row))
    rounds = -(-len(order) // (batch_size * world_size))
    num_batches = min(rounds * world_size, len(order))
    bounds = [len(order) * i // num_batches for i in range(num_batches + 1)] if order else []
    return [order[low:high] for low, high in pairwise(bounds)][rank::world_size]
