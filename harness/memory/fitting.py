"""Before weights are read: micro-batch and policy with which a run fits, its global batch unchanged (memory=auto).

Smaller micro-batches make products less efficient, checkpointing computes layers again; the cheaper way is taken:

    time of a step ~ 1 + (layers computed again) / (3 layers) + 512 / (tokens of a micro-batch)
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from harness import registry
from harness.config import RunConfig
from harness.data.datamodule import DataModule
from harness.data.extent import Extent
from harness.errors import UserError, reject
from harness.memory.config import AUTO
from harness.memory.outline import outline
from harness.memory.prediction import Plan, Prediction, Sizes, cost, plans, predict
from harness.memory.resolve import plan_of, sizes_of
from harness.model.compiled import will_compile
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

_OVERHEAD = 512
"""Tokens in whose time a micro-batch of any size is begun and ended."""
_SHORTER = (2, 4, 8)
"""By what lengths are divided in looking for something that fits."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A micro-batch size and what was predicted for it."""

    batch_size: int
    accumulate: int
    extent: Extent
    sizes: Sizes
    prediction: Prediction

    def time(self) -> float:
        """Returns the relative time of a step, see above."""
        layers = len(self.sizes.layers)
        return 1 + cost(self.prediction.plan, layers) / (3 * layers) + _OVERHEAD / max(self.extent.tokens, 1)

    def text(self) -> str:
        """Spells the choice as keys."""
        return (
            f"trainer.batch_size={self.batch_size} trainer.accumulate={self.accumulate} {self.prediction.plan.text()}"
        )


def candidates(
    config: RunConfig, tuned: Tuned, extent_of: Callable[[int], Extent], device: torch.device, compiled: bool
) -> list[Fit]:
    """Returns every micro-batch size that divides the global batch, none larger than set, with every plan.

    Args:
        config: The run's; without memory.checkpointing=auto its own plan and micro-batch alone.
        tuned: The tuned model; its weights are not looked at.
        extent_of: The largest micro-batch of so many units.
        device: Where layers are traced.
        compiled: Whether layers will be compiled.
    """
    total, auto = config.trainer.batch_size * config.trainer.accumulate, config.memory.checkpointing == AUTO
    fixed_size = not auto or getattr(config.optim, "per_parameter", False)
    found = []
    for size in range(config.trainer.batch_size, 0, -1):
        if total % size or (fixed_size and size != config.trainer.batch_size):
            continue
        extent = extent_of(size)
        sizes = sizes_of(config, tuned, extent, device, compiled)
        chosen = plans(len(sizes.layers), bool(sizes.blocks)) if auto else [plan_of(config.memory)]
        found += [Fit(size, total // size, extent, sizes, predict(plan, *sizes)) for plan in chosen]
    return found


def best(fits: list[Fit], room_gib: float) -> Fit | None:
    """Returns the fastest that fits, None where none does."""
    fitting = [fit for fit in fits if fit.prediction.needed_gib <= room_gib]
    return min(fitting, key=Fit.time) if fitting else None


def least(fits: list[Fit]) -> Fit:
    """Returns the one that needs least."""
    return min(fits, key=lambda fit: fit.prediction.peak_gib)


def plan_ahead(config: RunConfig, data: DataModule, device: torch.device, room_gib: float) -> Fit | None:
    """Chooses the micro-batch of a run; None where there is no choice, or it can not be made without weights.

    Args:
        config: The run's, with memory.checkpointing=auto.
        data: Prepared.
        device: Where the model will train.
        room_gib: What may be allocated there.

    Raises:
        UserError: Nothing fits; the message has the nearest configuration that does.
    """
    if data.largest_batch() is None:
        return None
    try:
        tuned = outline(config, data.total_steps)
    except UserError as error:
        log.info("trainer.batch_size is left as it is: %s", error)
        return None
    compiled = will_compile(config, tuned.base.config.model_type, device)
    fits = candidates(config, tuned, lambda size: _bound(data, size), device, compiled)
    chosen = best(fits, room_gib)
    if chosen is None:
        raise refusal(config, least(fits), device, compiled, room_gib)
    if chosen.batch_size != config.trainer.batch_size:
        log.info("memory=auto: micro-batches of %d, %d of them a step", chosen.batch_size, chosen.accumulate)
    return chosen


def refusal(config: RunConfig, fit: Fit, device: torch.device, compiled: bool, room_gib: float) -> UserError:
    """Returns the message that a run does not fit, with what to type so that it does.

    Args:
        config: The run's.
        fit: Of what was tried, that which needs least.
        device: Where layers are traced.
        compiled: See `candidates`.
        room_gib: What there is.
    """
    needs = f"{fit.text()} needs {fit.prediction.needed_gib:.1f} GiB, and there are {room_gib:.1f}"
    found = nearest(config, fit, device, compiled, room_gib)
    remedy = "nothing near it fits; take a smaller model or more GPUs" if found is None else f"what fits: {found}"
    return reject("memory.checkpointing", config.memory.checkpointing, f"{needs}; {remedy}")


def nearest(config: RunConfig, fit: Fit, device: torch.device, compiled: bool, room_gib: float) -> str | None:
    """Returns overrides beside which the run fits, as few as can be, or None; arguments as for `refusal`."""
    for overrides, changed, extent in _changes(config, fit):
        try:
            sizes = sizes_of(changed, outline(changed), extent, device, compiled)
        except UserError:
            continue
        count = len(sizes.layers)
        frugal = [Plan(checkpointing="full", checkpointed_layers=count, vit_checkpointing="full"), fit.prediction.plan]
        needed = min(predict(plan, *sizes).needed_gib for plan in frugal)
        if needed <= room_gib:
            small = f"trainer.batch_size={fit.batch_size} trainer.accumulate={fit.accumulate}"
            return f"{overrides} {small} memory.checkpointing=auto ({needed:.1f} GiB)"
    return None


def _changes(config: RunConfig, fit: Fit) -> Iterator[tuple[str, RunConfig, Extent]]:
    """Yields changes of a config, the least first: policy, optimiser, length, tuner, and these together."""
    full, names = getattr(config.tuner, "is_full", False), registry.names("optim")
    yield "", config, fit.extent
    if full and config.optim.name == "adamw" and "adamw_8bit" in names:
        small = _optim(config)
        yield "optim=adamw_8bit", small, fit.extent
    for factor in _SHORTER:
        if (shorter := _shorter(config, fit.extent, factor)) is not None:
            yield shorter[0], config, shorter[1]
    if full:
        lora = replace(config, tuner=registry.get("tuner", "lora").config())
        yield "tuner=lora", lora, fit.extent
        for factor in _SHORTER:
            if (shorter := _shorter(config, fit.extent, factor)) is not None:
                yield f"tuner=lora {shorter[0]}", lora, shorter[1]


def _optim(config: RunConfig) -> RunConfig:
    return replace(config, optim=registry.get("optim", "adamw_8bit").config())


def _shorter(config: RunConfig, extent: Extent, factor: int) -> tuple[str, Extent] | None:
    key = "packing_length" if config.data.packing and config.data.packing_length else "max_length"
    length = getattr(config.data, key)
    if not length or length // factor < 256:
        return None
    sizes = (extent.tokens // factor, extent.visual // factor, extent.supervised // factor)
    return f"data.{key}={length // factor}", Extent(*sizes)


def _bound(data: DataModule, size: int) -> Extent:
    extent = data.largest_batch(size)
    assert extent is not None
    return extent
