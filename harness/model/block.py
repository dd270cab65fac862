"""Calls a decoder layer or a block of the vision tower: as it is, compiled, or computed again in the backward pass.

A tower that is compiled carries the function as `run_block` (`harness/model/compiled.py`), a block whose activations
are not kept carries how as `recompute` (`harness/memory/standard.py`). transformers' own switch for that is left off:
it sits inside the block's forward in 5.23 and around it in 5.17, so in a compiled block or outside of it.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

FOLLOWS_INPUT = "follows_input"
"""Name of a tower's attribute that is true where the input of each block that trains is to have a gradient."""


def call(tower: nn.Module, block: nn.Module, hidden: Tensor, **told: Any) -> Tensor:
    """Returns what a block makes of its input.

    Args:
        tower: The model that the block is part of.
        block: A decoder layer, or a block of the vision tower.
        hidden: Its input.
        told: What else its forward takes.
    """
    if torch.is_grad_enabled() and not hidden.requires_grad and _follows_input(tower, block):
        hidden = hidden.detach().requires_grad_()
    run = getattr(tower, "run_block", run_block) if block.training else run_block
    recompute = getattr(block, "recompute", None)
    if recompute is None or not (block.training and torch.is_grad_enabled()):
        return run(block, hidden, **told)
    return recompute(partial(run, block), hidden, **told)


def _follows_input(tower: nn.Module, block: nn.Module) -> bool:
    return getattr(tower, FOLLOWS_INPUT, False) and any(parameter.requires_grad for parameter in block.parameters())


def run_block(block: nn.Module, hidden: Tensor, **told: Any) -> Tensor:
    """Returns what a block makes of its input, in this process's own steps."""
    return block(hidden, **told)
