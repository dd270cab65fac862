"""Rows from files, folders, saved data sets and the hub, in any mixture of formats."""

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.config import DataConfig, OnError
from harness.errors import reject
from harness.registry import register

if TYPE_CHECKING:
    from harness.data.row import Sources
    from harness.data.source.open import Options
    from harness.data.source.rows import Reading, TableRows
    from harness.data.source.selection import Entry
    from harness.data.source.table import Table

_SEED = 42
_SHUFFLE_BUFFER = 1000


class Stopping(Enum):
    """When interleaving by weights ends an epoch."""

    first_exhausted = "first_exhausted"
    all_exhausted = "all_exhausted"


@dataclass(kw_only=True, slots=True)
class FilesConfig(DataConfig):
    """Your own rows: jsonl, json, csv, tsv, parquet, txt, folders of them, saved data sets, hub ids."""

    name: str = "files"
    train: Any = None
    """What to train on: path or hub id, then perhaps :subset and #rows, as in 'a.jsonl#500'; or a list. Mandatory."""
    val: Any = None
    """What to validate on, as for train; null for none."""
    columns: dict[str, str] = field(default_factory=dict)
    """Your columns to the keys of rows, as {question: query, answer: response}; _ leaves a column out."""
    split_ratio: float = 0.0
    """Share of the training rows that is set apart for validation, where val is null; 0 sets none apart."""
    seed: int = _SEED
    """Seed of split, #rows and weights; it is not the run's seed, so that every run sees the same rows."""
    root: str | None = None
    """Folder that relative paths of media start from and that no path may leave; null starts from the file's folder."""
    weights: list[float] | None = None
    """Interleave the entries of train with these probabilities, one each; null puts one behind the other."""
    stopping: Stopping = Stopping.first_exhausted
    """An epoch of interleaved entries ends when the first, or when the last of them has given all its rows."""
    streaming: bool = False
    """Read rows as they are needed, without a look at all of them before; needs trainer.max_steps."""
    shuffle_buffer: int = _SHUFFLE_BUFFER
    """Rows per device among which a stream's next one is drawn, where data.shuffle is true."""

    def __post_init__(self) -> None:
        # Zero-argument super() fails in a slots dataclass: the decorator makes a second class of the same name.
        DataConfig.__post_init__(self)
        self.train = _entries("data.train", self.train)
        self.val = _entries("data.val", self.val)
        if not self.train:
            raise reject("data.train", "null", "give a file, a folder or a hub id, or a list of them")
        if not 0 <= self.split_ratio < 1:
            raise reject("data.split_ratio", self.split_ratio, "give 0, or a share below 1")
        if self.val and self.split_ratio:
            raise reject("data.split_ratio", self.split_ratio, "has no effect beside data.val; set one of them")
        if not 0 <= self.seed < 2**32:
            raise reject("data.seed", self.seed, "give 0 or more, and below 2**32")
        draws = self.split_ratio or self.weights or any("#" in entry for entry in self.train + self.val)
        if self.seed != _SEED and not draws:
            remedy = "has no effect without data.split_ratio, #rows or data.weights; the order follows the run's seed"
            raise reject("data.seed", self.seed, remedy)
        _check_columns(self.columns)
        self._check_weights()
        self._check_streaming()

    def look(self) -> None:
        """Finds all files, and reads the first row of each that is one row behind the other.

        Raises:
            UserError: One is missing, or a row that will be read can not be used.
        """
        from harness.data.source.first_row import look

        # What is drawn by chance need not come up.
        certain = not (self.streaming or self.weights or self.on_error is OnError.skip)
        for key, entries in (("data.train", self.train), ("data.val", self.val)):
            for entry in entries:
                look(key, entry, self.columns, _reading(self, _cache(self)) if certain else None)

    def _check_weights(self) -> None:
        if self.weights is None:
            if self.stopping is not Stopping.first_exhausted:
                raise reject("data.stopping", self.stopping.name, "has no effect without data.weights")
            return
        if len(self.train) < 2:
            raise reject("data.weights", self.weights, "interleaves several entries, and data.train has one; set null")
        if len(self.weights) != len(self.train):
            raise reject(
                "data.weights", self.weights, f"give one for each of the {len(self.train)} entries of data.train"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise reject("data.weights", self.weights, "give numbers above 0; an entry of weight 0 can be left out")

    def _check_streaming(self) -> None:
        if self.shuffle_buffer < 1:
            raise reject("data.shuffle_buffer", self.shuffle_buffer, "give at least 1")
        if self.shuffle_buffer != _SHUFFLE_BUFFER and not (self.streaming and self.shuffle):
            remedy = "has no effect without data.streaming=true and data.shuffle=true"
            raise reject("data.shuffle_buffer", self.shuffle_buffer, remedy)
        if self.streaming and self.split_ratio:
            raise reject(
                "data.split_ratio", self.split_ratio, "a stream can not be split; give data.val a file of its own"
            )
        if self.streaming and self.group_by_length:
            raise reject(
                "data.group_by_length", "true", "has no effect on a stream, whose lengths are not known before"
            )


def _entries(key: str, value: Any) -> list[str]:
    entries = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry.strip() for entry in entries):
        raise reject(key, value, "give a path or a list of paths")
    return [entry.strip() for entry in entries]


def _check_columns(columns: dict[str, str]) -> None:
    from harness.data.format.keys import IGNORED, check_columns

    check_columns(columns)
    targets = [key for key in columns.values() if key != IGNORED]
    twice = [key for key in targets if targets.count(key) > 1]
    if twice:
        raise reject("data.columns", columns, f"two columns become {twice[0]!r}; a key has one")


@register("data", FilesConfig)
def build(config: FilesConfig) -> "Sources":
    """Finds every row without reading it; rows are checked when they are asked for.

    Raises:
        UserError: A file is missing, empty or of no known kind.
    """
    from harness.data.row import Sources
    from harness.data.source.open import Options
    from harness.data.source.rows import digest
    from harness.data.source.stream import open_stream

    cache = _cache(config)
    options = Options(config.columns, cache)
    reading = _reading(config, cache)
    if config.streaming:
        stream = open_stream(config, reading, options)
        val = _rows(config, config.val, options, reading)
        return Sources(train=stream, val=val, fingerprint=digest([stream.fingerprint, val.content]))
    train, val = _train_rows(config, options, reading)
    if config.val:
        val = _rows(config, config.val, options, reading)
    return Sources(train=train, val=val, fingerprint=digest([train.content, val.content]))


def _train_rows(config: FilesConfig, options: "Options", reading: "Reading") -> tuple["TableRows", "TableRows"]:
    """Returns the training rows, and what `split_ratio` sets apart from them."""
    import numpy as np

    from harness.data.source.rows import TableRows
    from harness.data.source.selection import choose, interleave

    tables, entries = _open("data.train", config.train, options)
    parts, val_index = choose(entries, config.split_ratio, shuffle=config.shuffle, seed=config.seed)
    index = np.concatenate(parts)
    if config.weights is not None:
        until_all = config.stopping is Stopping.all_exhausted
        index = index[interleave([*map(len, parts)], config.weights, until_all=until_all, seed=config.seed)]
    return TableRows(tables, reading, index), TableRows(tables, reading, val_index)


def _rows(config: FilesConfig, texts: list[str], options: "Options", reading: "Reading") -> "TableRows":
    """Returns the rows of `data.val`, perhaps none."""
    import numpy as np

    from harness.data.source.rows import TableRows
    from harness.data.source.selection import choose

    tables, entries = _open("data.val", texts, options)
    parts, _ = choose(entries, 0.0, shuffle=config.shuffle, seed=config.seed)
    return TableRows(tables, reading, np.concatenate([np.zeros(0, dtype=np.int64), *parts]))


def _open(key: str, texts: list[str], options: "Options") -> tuple[tuple["Table", ...], list["Entry"]]:
    """Returns the tables that some entries lead to, and each entry's rows among those of all tables."""
    import numpy as np

    from harness.data.source.open import Opener
    from harness.data.source.selection import Entry
    from harness.data.source.spec import parse

    specs = [parse(key, text) for text in texts]
    opener = Opener(options)
    numbers = [opener.open(key, spec) for spec in specs]
    bounds = np.cumsum([0, *map(len, opener.tables)])
    entries = [
        Entry(key, spec.text, np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in of_entry]), spec.sample)
        for spec, of_entry in zip(specs, numbers, strict=True)
    ]
    return tuple(opener.tables), entries


def _cache(config: FilesConfig) -> Path | None:
    return None if config.cache_dir is None else Path(config.cache_dir)


def _reading(config: FilesConfig, cache: Path | None) -> "Reading":
    from harness.data.source.rows import Reading

    if config.root is not None and not Path(config.root).is_dir():
        raise reject("data.root", config.root, "no such folder")
    return Reading(
        columns=config.columns,
        bbox=config.bbox,
        root=None if config.root is None else Path(config.root),
        max_pixels=config.image.max_pixels_decoded,
        cache=None if cache is None else cache / "media",
        time_limit_s=config.video.time_limit_s,
    )
