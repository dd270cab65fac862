"""Micro-batches of rows that are all known before training: units of samples, and the order in which they come."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Self

import numpy as np

from harness.data.config import DataConfig
from harness.data.extent import Extent
from harness.data.index.samples import SampleIndex
from harness.data.loader import Planned
from harness.data.order import micro_batches
from harness.data.packing import Units, efficiency, units_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """The plan of all readers: of ranks, or of neighbours that share their batches."""

    samples: SampleIndex
    units: Units
    config: DataConfig
    seed: int
    batch_size: int
    """Units of a micro-batch."""
    accumulate: int
    """Micro-batches of a step."""

    @classmethod
    def of(cls, samples: SampleIndex, config: DataConfig, seed: int, batch_size: int, accumulate: int) -> Self:
        """Makes the units."""
        units = units_of(samples.lengths, config, seed)
        if (capacity := config.pack_length()) is not None:
            share = 100 * efficiency(units, samples.lengths, capacity)
            log.info("packing: %s packs of %s tokens, %.1f %% filled", f"{len(units):,}", f"{capacity:,}", share)
        return cls(samples, units, config, seed, batch_size, accumulate)

    def steps(self, epochs: float, readers: int) -> int:
        """Optimiser steps that draw every unit `epochs` times: as many as that takes, no step being cut short."""
        # 1.1 times 10 is 11.000000000000002 in floating point, a step too many.
        return math.ceil(Fraction(str(epochs)) * len(self.units) / (self.batch_size * self.accumulate * readers))

    def micro_batches(self, reader: int, readers: int, start: int) -> Iterator[Planned]:
        """Yields a reader's micro-batches without end, from number `start` on."""
        units, samples = self.units, self.samples
        supervised, tokens, visual = map(units.sums, (samples.supervised, samples.lengths, samples.visual))
        several = readers > 1
        # Packs are equally long: those of like images meet in a step, so that of several ranks none waits. One rank
        # does it too, for a step to be the same on any number of them. An order that is to stay stays.
        images_meet = self.config.packing and self.config.shuffle
        alike = tokens if self.config.group_by_length else visual if images_meet else None
        order = micro_batches(
            self.seed,
            len(units),
            self.batch_size,
            readers,
            reader,
            self.config.shuffle,
            start,
            accumulate=self.accumulate,
            lengths=alike,
            visual=visual if several else None,
            tokens=tokens if several else None,
        )
        for numbers in order:
            yield Planned([units[number] for number in numbers], int(supervised[numbers].sum()))

    def extent(self, batch_size: int) -> Extent:
        """Returns bounds on micro-batches of `batch_size` units."""
        samples, longest = self.samples, self.config.pack_length() or self.config.max_tokens_per_batch
        lengths, visual, supervised = map(self.units.sums, (samples.lengths, samples.visual, samples.supervised))
        # Without packing, rows are padded to the longest.
        tokens = batch_size * (longest or int(samples.lengths.max()))
        if self.config.padding_free and not longest:
            tokens = _largest(lengths, batch_size)
        return Extent(tokens, _largest(visual, batch_size), _largest(supervised, batch_size))

    def largest(self, reader: int, readers: int, start: int, number: int) -> list[Planned]:
        """Returns those of a reader's next `number` micro-batches that have most tokens and most to see."""
        planned = list(islice(self.micro_batches(reader, readers, start), number))
        longest = max(range(number), key=lambda i: self._tokens(planned[i]))
        visual = self.samples.visual
        fullest = max(range(number), key=lambda i: visual[np.concatenate(planned[i].units)].sum())
        return [planned[i] for i in dict.fromkeys((longest, fullest))]

    def _tokens(self, planned: Planned) -> int:
        """Returns the tokens of a micro-batch, padding included."""
        lengths = [self.samples.lengths[np.asarray(unit)].sum() for unit in planned.units]
        return int(sum(lengths)) if self.config.padding_free else len(lengths) * int(max(lengths))


def _largest(values_U: np.ndarray, number: int) -> int:
    """Returns the sum of the largest values: an order of units may bring them together, and once more with the next."""
    again = np.tile(values_U, number // len(values_U) + 2)
    return int(np.sort(again)[-number:].sum())
