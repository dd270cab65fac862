"""Q-GaLore's update of one matrix; see `harness.optim.q_galore`."""

from typing import Any

import torch
from torch import Tensor, nn

from harness.optim.adam_kernel import State, adam_direction
from harness.optim.galore_rule import descend, sides_of
from harness.optim.projection import project, seed_of, singular_bases
from harness.optim.q_galore import QGaloreConfig
from harness.optim.quantize import pack_even, pack_moment, round_even_, unpack_even, unpack_moment

WEIGHT_BITS, WEIGHT_GROUP = 8, 256
"""The paper's storage of weights."""
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Adam's moments, and whether they have a sign."""


def update(config: QGaloreConfig, name: str, weight: nn.Parameter, state: State, group: dict[str, Any]) -> None:
    """Updates a weight and its state in place.

    Args:
        config: Rank, intervals, scale, sides and what is quantised.
        name: Of the weight: seeds the rounding by chance, with the age.
        weight: m x n, with its gradient.
        state: Empty at first; then `age` in steps, `gap` and `due` of its projections, `cosines`, the bases `left` and
            `right` and Adam's moments, packed or not.
        group: With `lr`, `weight_decay`, `betas` and `eps`.
    """
    assert weight.grad is not None
    age = state.setdefault("age", 0)
    if age == state.get("due", 0):
        _renew(config, weight.grad, state)
    state["age"] = age + 1
    bases = _bases(config, weight, state)
    low = project(weight.grad, bases)
    dice = torch.Generator(weight.device).manual_seed(seed_of(name, age))
    direction = (
        _packed_direction(low, state, group, dice) if config.quantize_state else adam_direction(low, state, group)
    )
    descend(weight, direction, bases, group, config.scale)
    if config.quantize_weights:
        round_even_(weight, WEIGHT_BITS, WEIGHT_GROUP, dice)


def _renew(config: QGaloreConfig, gradient: Tensor, state: State) -> None:
    """Replaces the bases, and sets when they are due again."""
    sides = sides_of(config.proj_type, gradient)
    new = singular_bases(gradient, config.rank, sides)
    cosines = state.setdefault("cosines", [])
    if state["age"]:
        old = _bases(config, gradient, state)
        both = [torch.cosine_similarity(old[side][..., 0], new[side][..., 0], dim=-1).abs().mean() for side in sides]
        # One wait for the device, where the eigenvectors made one already.
        cosines.append(float(torch.stack(both).mean()))
        del cosines[: -config.queue_size]
    gap = state.setdefault("gap", config.update_proj_gap)
    if len(cosines) == config.queue_size and sum(cosines) / len(cosines) >= config.cos_threshold:
        gap = state["gap"] = int(gap * config.gamma_proj)
    state["due"] = state["age"] + gap
    for side in sides:
        packed = config.proj_quant
        state[side] = pack_even(new[side], config.proj_bits, config.proj_group_size) if packed else new[side]


def _bases(config: QGaloreConfig, weight: Tensor, state: State) -> dict[str, Tensor]:
    sides = [side for side in ("left", "right") if side in state]
    if not config.proj_quant:
        return {side: state[side] for side in sides}
    size = {"left": weight.shape[-2], "right": weight.shape[-1]}
    shapes = {side: (*weight.shape[:-2], size[side], config.rank) for side in sides}
    bits, group = config.proj_bits, config.proj_group_size
    return {side: unpack_even(state[side], bits, group, shapes[side]).to(weight.dtype) for side in sides}


def _packed_direction(low: Tensor, state: State, group: dict[str, Any], dice: torch.Generator) -> Tensor:
    """Adam's direction from moments that are held in 8 bits."""
    exact: State = {}
    if "step" in state:
        exact = {key: unpack_moment(state[key], low.shape).to(low.dtype) for key in _MOMENTS} | {"step": state["step"]}
    direction = adam_direction(low, exact, group)
    state["step"] = exact["step"]
    for key, signed in _MOMENTS.items():
        state[key] = pack_moment(exact[key], signed=signed, generator=dice)
    return direction
