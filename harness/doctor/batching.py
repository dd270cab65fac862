"""How full micro-batches are: padded, grouped by length, packed; and how many steps an epoch has.

Shapes: N samples.
"""

from itertools import islice
from typing import Any

import numpy as np

from harness.config import RunConfig
from harness.data.order import micro_batches
from harness.data.packing import Units, efficiency, fill, units_of
from harness.doctor.split import Split
from harness.doctor.wording import counted
from harness.logging.table import show as show_table

PACKS = (4_096, 8_192, 16_384)
"""Packing lengths that are tried beside the one that is set."""


def measure(split: Split, config: RunConfig) -> dict[str, Any]:
    """Returns a row for each layout, the one that is set marked, and the steps of an epoch."""
    lengths, data = split.samples.lengths, config.data
    units = units_of(lengths, data, config.seed)
    rounds = config.trainer.batch_size * config.trainer.accumulate * config.data_ranks
    steps = None if split.streamed else -(-len(units) // rounds)
    together = max(1, round(config.trainer.batch_size * len(lengths) / len(units)))
    simple = not (data.packing or data.max_tokens_per_batch or data.padding_free)
    layouts = [
        _padded(lengths, together, config, grouped) | {"set": simple and data.group_by_length is grouped}
        for grouped in (False, True)
    ]
    if data.padding_free and data.max_tokens_per_batch is None:
        layouts.append(_row(f"padding-free, {together} a batch", len(units), lengths, int(lengths.sum()), True))
    if (budget := data.max_tokens_per_batch) is not None:
        layouts.append(_budget(units, lengths, budget, data.padding_free))
    capacity = data.pack_length()
    layouts += [_packed(lengths, length, config, capacity) for length in sorted({*PACKS, capacity or PACKS[0]})]
    return {"layouts": layouts, "steps_per_epoch": steps, "streamed": split.streamed}


def show(batching: dict[str, Any]) -> None:
    """Prints the table and the steps."""
    rows = [
        (
            ("* " if row["set"] else "  ") + row["layout"],
            row["batches"],
            row["left_out"],
            f"{100 * row['filled']:.1f} %",
        )
        for row in batching["layouts"]
    ]
    columns = ("layout (* is set)", "batches or packs", "samples too long", "filled with tokens")
    show_table("train: packing and padding", columns, rows)
    if batching["streamed"]:
        print("a stream has no epochs; the table is of the rows looked at")
    else:
        print(f"{counted(batching['steps_per_epoch'], 'step')} an epoch")
    print()


def _padded(lengths: np.ndarray, batch_size: int, config: RunConfig, grouped: bool) -> dict[str, Any]:
    number = -(-len(lengths) // batch_size)
    order = micro_batches(
        config.seed, len(lengths), batch_size, 1, 0, config.data.shuffle, lengths=lengths if grouped else None
    )
    # The last one reaches into the next epoch, as it does in training, and is looked at alike.
    drawn = lengths[np.stack(list(islice(order, number)))].astype(np.int64)
    name = f"padded, {batch_size} a batch{', like lengths together' if grouped else ''}"
    filled = drawn.sum() / (drawn.max(axis=1) * batch_size).sum()
    return {"layout": name, "batches": number, "left_out": 0, "filled": float(filled)}


def _packed(lengths: np.ndarray, capacity: int, config: RunConfig, wanted: int | None) -> dict[str, Any]:
    fitting = lengths[lengths <= capacity]
    row = {"layout": f"packed to {capacity:,}", "left_out": len(lengths) - len(fitting), "set": capacity == wanted}
    if not len(fitting):
        return row | {"batches": 0, "filled": 0.0}
    units = fill(fitting, capacity, False, config.seed, shuffle=config.data.shuffle)
    return row | {"batches": len(units), "filled": efficiency(units, fitting, capacity)}


def _budget(units: Units, lengths: np.ndarray, budget: int, padding_free: bool) -> dict[str, Any]:
    """Of `max_tokens_per_batch`: padded to the longest, or joined up to the budget."""
    name = f"batches of {budget:,} tokens{', padding-free' if padding_free else ''}"
    if padding_free:
        return _row(name, len(units), lengths, int(lengths.sum(dtype=np.int64)), True)
    longest = np.maximum.reduceat(lengths[units.members], units.bounds[:-1]).astype(np.int64)
    return _row(name, len(units), lengths, int((longest * np.diff(units.bounds)).sum()), True)


def _row(name: str, batches: int, lengths: np.ndarray, positions: int, chosen: bool) -> dict[str, Any]:
    filled = int(lengths.sum(dtype=np.int64)) / positions
    return {"layout": name, "batches": batches, "left_out": 0, "filled": filled, "set": chosen}
