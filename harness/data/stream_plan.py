"""Micro-batches of a stream of rows: encoded and packed as they come, in the training process.

Only text is done here, which costs a fraction of a millisecond a row; the workers decode images and videos. So batches
depend on neither the number of workers nor their pace. A run resumes by reading the stream again up to where it was.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.data.account import Account
from harness.data.config import DataConfig
from harness.data.loader import Planned
from harness.data.packing import units_of
from harness.data.row import RowStream
from harness.data.row_error import RowError
from harness.data.template.encoder import Dropped, EncodedSample, Encoder
from harness.errors import UserError
from harness.logging.setup import FILE_ONLY

log = logging.getLogger(__name__)

_POOL = 32
"""Packs, or micro-batches, whose samples are looked at together: more fill packs better and cost memory."""

_USELESS = 10_000
"""Rows after which a stream that gave nothing is given up; it would be read for ever."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The plan of one rank."""

    stream: RowStream
    encoder: Encoder
    config: DataConfig
    skip: bool
    seed: int
    batch_size: int
    account: Account

    def micro_batches(self, rank: int, world_size: int, start: int) -> Iterator[Planned]:
        """Yields micro-batches without end, from number `start` on; the ones before are read and passed over.

        Raises:
            RowError: A row can not be used, and `data.on_error=raise`.
        """
        unit_stream = self._units(rank, world_size)
        number = 0
        while True:
            units = [next(unit_stream) for _ in range(self.batch_size)]
            if number >= start:
                yield Planned(units, sum(sample.num_supervised for unit in units for sample in unit))
            number += 1

    def _units(self, rank: int, world_size: int) -> Iterator[list[EncodedSample]]:
        capacity, budget = self.config.pack_length(), self.config.max_tokens_per_batch
        samples = self._samples(rank, world_size)
        if capacity is None and budget is None:
            yield from ([sample] for sample in samples)
        limit = capacity or budget or 0
        pool: list[EncodedSample] = []
        tokens = 0
        for sample in samples:
            pool.append(sample)
            tokens += len(sample.ids)
            if tokens < _POOL * limit:
                continue
            lengths = np.array([len(item.ids) for item in pool])
            units = units_of(lengths, self.config, self.seed)
            # The emptiest waits for samples that fill it; where they keep their order, the last.
            waits = int(np.argmin(units.sums(lengths))) if self.config.shuffle else -1
            made = [[pool[i] for i in units[number].tolist()] for number in range(len(units))]
            pool = made.pop(waits)
            tokens = sum(len(item.ids) for item in pool)
            yield from made

    def _samples(self, rank: int, world_size: int) -> Iterator[EncodedSample]:
        useless = 0
        for row in self.stream.read(rank, world_size, self.seed):
            self.account.rows += 1
            useless += 1
            if useless > _USELESS:
                left_out = self.account.skipped.text() or self.account.dropped.text()
                raise UserError(f"data.train: none of {_USELESS:,} rows in a row can be used: {left_out}")
            try:
                if isinstance(row, RowError):
                    raise row
                samples = self.encoder.encode(row)
            except RowError as error:
                if not self.skip:
                    raise
                self.account.skipped.add(error.reason, str(error))
                log.warning("train: skipped %s", error, extra={FILE_ONLY: True})
                continue
            if isinstance(samples, Dropped):
                self.account.dropped.add(samples.reason, samples.origin)
                continue
            if samples[0].piece_of_more:
                self.account.truncated.add(self.encoder.truncation.name, row.origin)
            useless = 0
            for sample in samples:
                self.account.samples += 1
                self.account.tokens += len(sample.ids)
                self.account.visual_tokens += sample.num_visual
                self.account.supervised_tokens += sample.num_supervised
                yield sample
