"""What a step of the run will need on a GPU, which need not be here: predicted without weights."""

from typing import Any

import torch

from harness.config import RunConfig
from harness.data.assemble import data_module
from harness.doctor.card import usable_gib
from harness.errors import UserError
from harness.experiment.budget import solve
from harness.logging.table import render
from harness.memory.config import AUTO
from harness.memory.fitting import Fit, best, candidates, least, refusal
from harness.memory.outline import outline
from harness.memory.prediction import Plan
from harness.model.compiled import will_compile
from harness.model.processor import load_processor

_PLACES = 2


def measure(config: RunConfig, gpus: list[dict[str, Any]], card: str | None) -> dict[str, Any] | None:
    """Predicts the peak of a run; None where no GPU is at hand or named.

    Args:
        config: The run's, its data found sound.
        gpus: What `machine` found.
        card: Name of a GPU that is not here.

    Returns:
        For doctor.json: `room_gib`, `extent`, `rows` of the table, `chosen` or `failure`.

    Raises:
        UserError: The card is not known.
    """
    room = _room(config, gpus, card)
    if room is None:
        return None
    data = data_module(config, load_processor(config.model))
    data.prepare()
    if data.largest_batch() is None:
        return {"room_gib": room, "rows": [], "failure": None, "skipped": "a stream does not say how long rows are"}
    config, _ = solve(config)
    try:
        tuned = outline(config)
    except UserError as error:
        return {"room_gib": room, "rows": [], "failure": None, "skipped": str(error)}
    # Kernels are those of a GPU; without one their shapes are those of the CPU's, which keep as much.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled = will_compile(config, tuned.base.config.model_type, torch.device("cuda"))
    fits = candidates(config, tuned, lambda size: data.largest_batch(size), device, compiled)  # type: ignore[arg-type, return-value]
    chosen = best(fits, room)
    failure = None if chosen else str(refusal(config, least(fits), device, compiled, room))
    shown = [fit for fit in fits if fit is chosen or _is_whole(fit)]
    return {
        "room_gib": room,
        "skipped": None,
        "rows": [_row(fit, fit is chosen) for fit in shown],
        "chosen": None if chosen is None or config.memory.checkpointing != AUTO else chosen.text(),
        "failure": failure,
    }


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    if found["skipped"]:
        print(f"memory is not predicted: {found['skipped']}\n")
        return
    first = found["rows"][0]
    columns = ["micro-batch", "policy", "tokens", *first["parts_gib"], "peak", "fits"]
    rows = [
        [
            row["micro_batch"],
            row["policy"],
            row["tokens"],
            *(round(part, _PLACES) for part in row["parts_gib"].values()),
            round(row["peak_gib"], _PLACES),
            "chosen" if row["chosen"] else "yes" if row["needed_gib"] <= found["room_gib"] else "no",
        ]
        for row in found["rows"]
    ]
    print(render(f"memory of a step, GiB: {found['room_gib']:.1f} to be had", columns, rows) + "\n")


def _row(fit: Fit, chosen: bool) -> dict[str, Any]:
    prediction = fit.prediction
    return {
        "micro_batch": f"{fit.batch_size} x {fit.accumulate}",
        "plan": prediction.plan.text(),
        "policy": _words(prediction.plan, bool(fit.sizes.blocks)),
        "tokens": fit.extent.tokens,
        "visual": fit.extent.visual,
        "supervised": fit.extent.supervised,
        "parts_gib": prediction.parts,
        "peak_gib": prediction.peak_gib,
        "needed_gib": prediction.needed_gib,
        "chosen": chosen,
    }


def _words(plan: Plan, has_vit: bool) -> str:
    words = [plan.checkpointing]
    if plan.checkpointed_layers is not None:
        words.append(f"{plan.checkpointed_layers} layers")
    if plan.offload_activations:
        words.append("offloaded")
    return ", ".join(words + ([f"ViT {plan.vit_checkpointing}"] if has_vit else []))


def _is_whole(fit: Fit) -> bool:
    plan = fit.prediction.plan
    return plan.checkpointed_layers in (None, len(fit.sizes.layers)) and plan.vit_checkpointing in (
        "none",
        plan.checkpointing,
    )


def _room(config: RunConfig, gpus: list[dict[str, Any]], card: str | None) -> float | None:
    found = [usable_gib(card)] if card else [gpu["free_gib"] for gpu in gpus[:1]]
    budget = [] if config.memory.budget_gib is None else [config.memory.budget_gib]
    return min(found + budget, default=None)
