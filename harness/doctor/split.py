"""Reads the splits of a run as training would, but goes on where training would end, so that every bad row shows."""

import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from harness.config import RunConfig
from harness.data.account import Account
from harness.data.assemble import make_encoder, text_key
from harness.data.config import Truncation
from harness.data.index.build import build as tokenise
from harness.data.index.samples import SampleIndex, index
from harness.data.row import Row, Rows, RowStream
from harness.data.row_error import RowError
from harness.data.template.encoder import Encoder
from harness.errors import UserError
from harness.model.processor import Processor
from harness.registry import build

STREAM_ROWS = 2_000
"""Rows that are looked at of a stream, which may have no end."""
_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Split:
    """What there is to look at of training or validation."""

    name: str
    samples: SampleIndex
    """Of usable rows; may be empty."""
    whole_lengths: np.ndarray
    """(R,) tokens of each row that can be read, whatever `data.max_length` says."""
    account: Account
    streamed: bool

    @property
    def rows(self) -> Rows:
        """All rows, unusable ones among them."""
        return self.samples.rows


@dataclass(frozen=True, slots=True)
class _FirstRows:
    """The first rows of a stream, or what is wrong with them."""

    found: list[Row | RowError]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Row:
        found = self.found[index]
        if isinstance(found, RowError):
            raise found
        return found

    def origin(self, index: int) -> str:
        return self.found[index].origin


def read(config: RunConfig, processor: Processor) -> list[Split]:
    """Tokenises all rows of training and validation; a split without rows is left out.

    Raises:
        UserError: A file or a setting can not be used.
    """
    data = copy.deepcopy(config.data)
    if data.truncation is Truncation["raise"]:
        # A row over the limit would end the look at all others; dropped, it is counted.
        data.truncation = Truncation.delete
    encoder = make_encoder(data, processor)
    sources = build("data", data)
    key = text_key(data, encoder.text)
    # The folder that training uses, so that it finds the rows tokenised.
    cache = None if data.cache_dir is None else Path(data.cache_dir) / "rows"
    splits = []
    for name, source in (("train", sources.train), ("val", sources.val)):
        streamed = hasattr(source, "read")
        rows: Rows = first_rows(source, config.seed) if streamed else source
        if len(rows):
            found = tokenise(
                rows, encoder.text, what=name, key=key, cache=cache, workers=data.index_workers, stop=False
            )
            account = Account(len(rows))
            samples = index(rows, found, encoder, account)
            whole = index(
                rows,
                found,
                Encoder(encoder.text, encoder.pixels, max_length=_UNBOUNDED, vision_side=encoder.vision_side),
                Account(len(rows)),
            )
            splits.append(Split(name, samples, whole.lengths, account, streamed))
    return splits


def first_rows(stream: RowStream, seed: int) -> Rows:
    """Reads the beginning of a stream; rows that come up again, as in a second epoch, are counted once.

    Raises:
        UserError: It can not be read at all.
    """
    found: dict[str, Row | RowError] = {}
    try:
        for item in islice(stream.read(0, 1, seed), STREAM_ROWS):
            found.setdefault(item.origin, item)
    except UserError:
        # A stream gives up after an epoch of bad rows; these say more than its message.
        if not found:
            raise
    return _FirstRows(list(found.values()), stream.fingerprint)
