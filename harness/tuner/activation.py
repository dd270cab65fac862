"""Element-wise functions that tuners offer between their two projections."""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Activation(Enum):
    """An element-wise function; linear is none."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    silu = "silu"
    tanh = "tanh"
    sigmoid = "sigmoid"
    linear = "linear"


def function(activation: Activation) -> "Callable[[Tensor], Tensor]":
    """Returns the function itself."""
    from functools import partial

    import torch
    from torch import Tensor
    from torch.nn import functional

    functions: dict[Activation, Callable[[Tensor], Tensor]] = {
        Activation.gelu: functional.gelu,
        Activation.gelu_tanh: partial(functional.gelu, approximate="tanh"),
        Activation.relu: functional.relu,
        Activation.silu: functional.silu,
        Activation.tanh: torch.tanh,
        Activation.sigmoid: torch.sigmoid,
        Activation.linear: _same,
    }
    return functions[activation]


def _same(x: "Tensor") -> "Tensor":
    return x
