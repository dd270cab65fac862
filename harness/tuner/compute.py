"""In what type modules of our own compute beside the frozen ones."""

import torch
from torch import Tensor


def as_weight(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x in the type of the weight that it is multiplied with; under autocast as it is."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)
