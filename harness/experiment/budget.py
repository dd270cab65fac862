"""Solves the size of a tuner from `tuner.budget`: the largest that trains no more parameters than that.

Parameters are counted in the tuned model itself, built on the meta device as the run will build it, so they are those
of summary.json, whatever the method, its targets and the freeze policy. A method that can not be built without weights
says how many a layer trains (`trained_in`). More size is never fewer parameters, so a handful of counts is enough. Rows
of new tokens are not counted.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from harness.config import RunConfig
from harness.errors import UserError, reject
from harness.memory.outline import outline
from harness.model.loading import skeleton
from harness.registry import build
from harness.tuner.lora import LoraConfig
from harness.tuner.target import target_sizes
from harness.tuner.targeted import TargetedConfig
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

_MOST = 1 << 24
"""No method has a larger size."""
_LEAST_SHARE = 0.5
"""Of the budget: with less, a trial is not one of equal parameters. Block sizes may be a factor of two apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """A size and what it comes to."""

    key: str
    """Of the size: `tuner.rank`."""
    size: int
    budget: int
    trainable_parameters: int


def solve(config: RunConfig) -> tuple[RunConfig, Solved | None]:
    """Returns the config with its tuner's size in place of a budget, and the size; without a budget both as they are.

    Raises:
        UserError: The smallest size has more parameters, or no size has half as many; the message has the nearest.
    """
    tuner: Any = config.tuner
    if (budget := getattr(tuner, "budget", None)) is None:  # whole-model tuners have none
        return config, None
    key, count = f"tuner.{tuner.size}", _counter(config)
    sizes = _divisors(config) if tuner.size_divides_inputs else range(tuner.least_size, _MOST)
    size, trained = _largest(count, sizes, budget)
    if not _LEAST_SHARE * budget <= trained <= budget:
        raise reject("tuner.budget", budget, f"the nearest possible is {trained:,} ({key}={size})")
    log.info("tuner.budget=%d: %s=%d trains %s parameters", budget, key, size, f"{trained:,}")
    solved = Solved(key=key, size=size, budget=budget, trainable_parameters=trained)
    return _sized(config, size), solved


def _largest(count: Callable[[int], int], sizes: Sequence[int], budget: int) -> tuple[int, int]:
    """Returns the largest size within the budget and its parameters; the first size where even that has more."""
    low, high, trained, place = 0, len(sizes), count(sizes[0]), 1
    while trained <= budget and high - low > 1:
        try:
            number = count(sizes[place])
        except UserError:
            # More than a layer takes, for the first size was taken.
            number = budget + 1
        if number > budget:
            high, guess = place, (low + place) // 2
        else:
            # Parameters are linear in most sizes: where the last two lead.
            rise = (number - trained) / (place - low)
            low, trained = place, number
            guess = low + int((budget - number) / rise) if rise else high - 1
        place = min(max(guess, low + 1), high - 1)
    return sizes[low], trained


def _counter(config: RunConfig) -> Callable[[int], int]:
    """Returns what counts the trained parameters of a size."""
    tuner: Any = config.tuner
    if not hasattr(tuner, "trained_in"):
        return lambda size: sum(_trained(outline(_sized(config, size))).values())
    shared = {item.name: getattr(tuner, item.name) for item in fields(TargetedConfig) if item.name != "budget"}
    beside = outline(replace(config, tuner=LoraConfig(rank=1, **shared)))
    fixed = sum(number for name, number in _trained(beside).items() if name not in beside.adapter)
    layers = _targets(config).values()
    return lambda size: fixed + sum(_sized(config, size).tuner.trained_in(*layer) for layer in layers)


def _trained(tuned: Tuned) -> dict[str, int]:
    return {name: p.numel() for name, p in tuned.model.named_parameters() if p.requires_grad}


def _targets(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Returns inputs and outputs of the layers that get an adapter."""
    model = skeleton(config.model)
    return target_sizes(model, config.tuner, build("freeze", config.freeze, model))


def _sized(config: RunConfig, size: int) -> RunConfig:
    return replace(config, tuner=replace(config.tuner, budget=None, **{config.tuner.size: size}))


def _divisors(config: RunConfig) -> list[int]:
    """Returns the block sizes that divide the inputs of every target."""
    inputs = math.gcd(*(number for number, _ in _targets(config).values()))
    return [size for size in range(2, inputs + 1) if inputs % size == 0]
