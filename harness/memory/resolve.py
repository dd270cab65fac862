"""Resolves `memory.checkpointing=auto`: predicts, chooses, and says why in the log."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.config import RunConfig
from harness.data.extent import Extent
from harness.errors import reject
from harness.logging.table import render
from harness.memory.checkpointing import vit_keeps
from harness.memory.config import AUTO, MemoryConfig
from harness.memory.kept import kept_by_blocks, kept_by_layers
from harness.memory.precision import checked_precision
from harness.memory.prediction import GIB, Plan, Prediction, Sizes, fixed, plans, predict
from harness.memory.quant.replace import saved_bytes
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A memory config without auto, and what it was predicted to need."""

    config: MemoryConfig
    prediction: Prediction | None = None

    def outcome(self, measured_gib: float | None) -> dict[str, Any] | None:
        """Returns plan, prediction and its error for the summary; None where nothing was predicted."""
        if self.prediction is None:
            return None
        predicted = self.prediction.peak_gib
        error = None if measured_gib is None else predicted / measured_gib - 1
        return {
            "plan": self.prediction.plan.text(),
            "parts_gib": self.prediction.parts,
            "predicted_peak_gib": predicted,
            "measured_peak_gib": measured_gib,
            "error": error,
        }


def resolve(
    config: RunConfig, tuned: Tuned, extent: Extent | None, device: torch.device, compiled: bool = False
) -> Resolved:
    """Chooses the fastest plan that fits, where the config leaves it to the prediction.

    Args:
        config: The run's.
        tuned: The tuned model, on one device, before the memory's builder has changed it.
        extent: The largest micro-batch; None: unknown.
        device: Where the model will train.
        compiled: Layers will be compiled.

    Raises:
        UserError: No plan fits, or the largest micro-batch is unknown.
    """
    memory = config.memory
    if memory.checkpointing != AUTO:
        return Resolved(memory)
    if device.type != "cuda":
        log.info("memory.checkpointing=auto: none, for memory is not planned on the %s", device.type)
        return Resolved(replace(memory, checkpointing="none"))
    if extent is None:
        remedy = "needs to know the longest row, and a stream does not say; set data.max_length, or a policy"
        raise reject("memory.checkpointing", AUTO, remedy)
    predictions = predictions_of(config, tuned, extent, device, compiled)
    room = room_gib(memory, device)
    chosen = choose(predictions, room)
    log.info("%s", table(predictions, chosen, room, extent))
    values = {name: getattr(chosen.plan, name) for name in Plan.__slots__}
    if chosen.plan.checkpointing == "none":
        values["checkpointed_layers"] = None
    if not vit_keeps(tuned.base):
        values["vit_checkpointing"] = None
    return Resolved(replace(memory, **values), chosen)


def predictions_of(
    config: RunConfig, tuned: Tuned, extent: Extent, device: torch.device, compiled: bool = False
) -> list[Prediction]:
    """Returns a prediction for every plan, the fastest plan first."""
    sizes = sizes_of(config, tuned, extent, device, compiled)
    return [predict(plan, *sizes) for plan in plans(len(sizes.layers), bool(sizes.blocks))]


def sizes_of(config: RunConfig, tuned: Tuned, extent: Extent, device: torch.device, compiled: bool = False) -> Sizes:
    """Returns what `predict` needs to know of a run beside the plan; see `resolve`."""
    dtype = _TYPES[checked_precision(config.memory, tuned.base, config.trainer)]
    base, extent = tuned.base, extent.shared(config.memory.sequence_parallel)
    layers = kept_by_layers(base, extent, device, dtype, compiled)
    blocks = kept_by_blocks(base, extent, device, dtype, compiled) if vit_keeps(base) else []
    saves, quant = getattr(config.memory, "saved_bytes", None), config.memory.quant
    saved = (saves(base) if saves else 0) + (saved_bytes(base, quant) if quant.changes_base else 0)
    strategy, processes = config.memory.strategy, config.trainer.world_size
    return Sizes(fixed(tuned.model, base, extent, config.optim, strategy, processes, compiled, saved), layers, blocks)


def plan_of(memory: MemoryConfig) -> Plan:
    """Returns the plan that a config without auto asks for."""
    return Plan(
        checkpointing=memory.checkpointing,
        checkpointed_layers=memory.checkpointed_layers,
        vit_checkpointing=memory.vit_checkpointing or memory.checkpointing,
        offload_activations=memory.offload_activations,
    )


def choose(predictions: list[Prediction], room_gib: float) -> Prediction:
    """Returns the first prediction that fits.

    Raises:
        UserError: None does.
    """
    for prediction in predictions:
        if prediction.needed_gib <= room_gib:
            return prediction
    least = min(predictions, key=lambda prediction: prediction.peak_gib)
    raise reject(
        "memory.checkpointing",
        AUTO,
        f"even {least.plan.text()} needs {least.needed_gib:.1f} GiB, and there are {room_gib:.1f}: lower "
        "trainer.batch_size, data.packing_length or data.max_length, train an adapter (tuner=lora) instead of the "
        "weights, or take memory=fp8_base memory.checkpointing=auto memory.keep_transpose=false",
    )


def room_gib(config: MemoryConfig, device: torch.device) -> float:
    """Returns the budget, or what is free on the GPU, this process's own memory included."""
    free = (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / GIB
    return free if config.budget_gib is None else min(free, config.budget_gib)


def table(predictions: list[Prediction], chosen: Prediction, room_gib: float, extent: Extent) -> str:
    """Renders the choice beside all or none of each policy."""
    ends = [p for p in predictions if p is chosen or p.plan.checkpointing == "none" or _is_whole(p, predictions)]
    rows = [
        [
            p.plan.text(),
            *(round(part, 2) for part in p.parts.values()),
            round(p.peak_gib, 2),
            "yes" if p is chosen else "",
        ]
        for p in ends
    ]
    title = (
        f"memory, GiB: {room_gib:.1f} to be had; micro-batches of up to {extent.tokens:,} tokens, "
        f"{extent.visual:,} visual and {extent.supervised:,} supervised"
    )
    return render(title, ["policy", *chosen.parts, "peak", "chosen"], rows)


def _is_whole(prediction: Prediction, predictions: list[Prediction]) -> bool:
    most = max(p.plan.checkpointed_layers or 0 for p in predictions)
    return prediction.plan.checkpointed_layers == most
