"""What a saved optimiser state says of each parameter."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn
from torch.optim import Optimizer


def restored(optimizer: Optimizer, state_dict: dict[str, Any]) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
    """Yields parameters that have state, and that.

    Args:
        optimizer: With the parameters, in the order of those that were saved.
        state_dict: What its `state_dict` returned. Keys are numbers, or names where torch.distributed.checkpoint saved.
    """
    saved, own = (
        chain.from_iterable(group["params"] for group in groups)
        for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    for key, parameter in zip(saved, own, strict=True):
        if key in state_dict["state"]:
            yield parameter, state_dict["state"][key]
