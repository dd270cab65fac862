"""Where forward passes and gradients that are written out by hand run in the place of plain operations.

On the CPU, where the number of operations is what a step of a small model costs. A compiler joins plain operations by
itself.
"""

import torch
from torch import Tensor


def is_direct(x: Tensor) -> bool:
    """Says whether what is about to be done with an activation is neither on a GPU nor compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
