"""Looks at the data of a run: every split by itself, the batches that training makes of it, and what splits share."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.config import RunConfig, to_plain
from harness.data.row_error import RowError
from harness.doctor import batching, boxes, content, decoding, duplicates, fate, spread, tokens, verdict, view, visual
from harness.doctor.boxes import Boxes
from harness.doctor.content import Content
from harness.doctor.duplicates import Prints
from harness.doctor.split import Split, read
from harness.doctor.wording import counted
from harness.model.processor import load_processor

ROWS_READ = 100_000
"""Rows of a split whose content is looked at; tokens and sizes are known of all."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a pass over the rows of a split found."""

    content: Content
    boxes: Boxes
    prints: Prints


def measure(config: RunConfig, *, decode_all: bool) -> dict[str, Any]:
    """Looks at rows, headers and some files; loads the checkpoint's processor and none of its weights.

    Args:
        config: Of the run.
        decode_all: Decode every image and video instead of some.

    Returns:
        For doctor.json: `config`, `splits`, `histograms`, `duplicates`, `findings`, `failures`, and, where a training
        row is left, `batching` and `view`.

    Raises:
        UserError: A file or a setting can not be used, so that there is nothing to look at.
    """
    processor = load_processor(config.model)
    splits = read(config, processor)
    looks = {split.name: _look(split) for split in splits}
    report: dict[str, Any] = {
        "config": to_plain(config),
        "splits": {split.name: _split(split, looks[split.name], config, decode_all) for split in splits},
        "histograms": _histograms(splits, looks),
        "duplicates": duplicates.compare({name: look.prints for name, look in looks.items()}),
    }
    for split in splits:
        if split.name == "train" and len(split.samples):
            report |= {"batching": batching.measure(split, config), "view": view.measure(split.samples, config.seed)}
    decoded = {name: found["decoded"] for name, found in report["splits"].items()}
    failures = verdict.of_settings(config) + verdict.of_data(config, splits, decoded)
    report["failures"] = failures or verdict.rehearse(config, processor)
    report["findings"] = _findings(report)
    return report


def show(report: dict[str, Any]) -> None:
    """Prints what `measure` found, but for findings and failures."""
    for name, split in report["splits"].items():
        fate.show(name, split["account"], split["streamed"])
        tokens.show(name, split["tokens"])
        visual.show(name, split["visual"])
        content.show(name, split["content"])
        if split["boxes"] is not None:
            boxes.show(name, split["boxes"])
        decoding.show(name, split["decoded"])
    for label, found in report["histograms"].items():
        print(spread.bars(label, found) + "\n")
    if "batching" in report:
        batching.show(report["batching"])
    if "view" in report:
        view.show(report["view"])


def _look(split: Split) -> _Look:
    look = _Look(Content(), Boxes(), Prints())
    arrays = split.samples.store.arrays
    for number in range(min(len(split.rows), ROWS_READ)):
        try:
            row = split.rows[number]
        except RowError:
            continue  # the account names it
        media = arrays.media[arrays.media_bounds[number] : arrays.media_bounds[number + 1]]
        look.content.add(row)
        look.prints.add(row)
        look.boxes.add(row, (int(media[0, 1]), int(media[0, 2])) if len(media) == 1 and not media[0, 0] else None)
    return look


def _split(split: Split, look: _Look, config: RunConfig, decode_all: bool) -> dict[str, Any]:
    workers = config.data.index_workers
    return {
        "streamed": split.streamed,
        "account": split.account.plain(),
        "tokens": tokens.measure(split),
        "visual": visual.measure(split),
        "content": look.content.plain() | {"all_rows": len(split.rows)},
        "boxes": look.boxes.plain(),
        "decoded": decoding.measure(split, everything=decode_all, workers=workers, seed=config.seed),
    }


def _histograms(splits: list[Split], looks: dict[str, _Look]) -> dict[str, dict[str, spread.Bins]]:
    values: dict[str, dict[str, np.ndarray]] = {
        "tokens per sample": {split.name: split.samples.lengths for split in splits},
        "supervised tokens per sample": {split.name: split.samples.supervised for split in splits},
        "visual tokens per sample": {split.name: split.samples.visual for split in splits},
        "tokens per image": {split.name: visual.image_tokens(split) for split in splits},
        "turns per row": {name: np.array(look.content.turns, dtype=np.int64) for name, look in looks.items()},
    }
    told = {label: found for label, found in values.items() if any(array.any() for array in found.values())}
    return {label: spread.histograms(found) for label, found in told.items()}


def _findings(report: dict[str, Any]) -> list[str]:
    found = []
    for name, split in report["splits"].items():
        found += [*fate.findings(name, split["account"]), *tokens.findings(name, split["tokens"])]
        found += content.findings(name, split["content"])
        if split["content"]["all_rows"] > ROWS_READ:
            found.append(f"{name}: turns, boxes and duplicates are those of the first {ROWS_READ:,} rows")
        if split["boxes"] is not None:
            found += boxes.findings(name, split["boxes"])
        found += decoding.findings(name, split["decoded"])
        if split["streamed"]:
            found.append(f"{name}: a stream, of which {counted(split['account']['rows'], 'row')} were looked at")
    found += duplicates.findings(report["duplicates"])
    if "val" not in report["splits"]:
        found.append("there are no validation rows: set data.val or data.split_ratio to measure progress")
    return found
