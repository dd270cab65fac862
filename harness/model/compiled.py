"""Compiles the blocks of both towers with torch.compile, one program for decoder layers and one for the ViT's blocks.

A block is compiled, not the model: equal blocks share their program, so that 36 layers cost one compilation, and what
stands between them (embeddings, DeepStack) is a few operations. Of the head, the step from logits to their gradient is
compiled. The text side has one length where packs are filled; the number of patches differs from batch to batch, and
the ViT's program takes any.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import RunConfig, identity
from harness.model.block import FOLLOWS_INPUT, run_block
from harness.model.loss import fused_slopes

log = logging.getLogger(__name__)

_PROGRAMS = 64
"""Programs of one block at most: each type of layer, trained or not, with gradients or without, needs its own."""

_MANY = 16
"""Programs in a run above which it warns: blocks of several kinds have a few, layers that share none one each."""

_own_blocks: dict[tuple[str, str], Callable[..., Tensor]] = {}
"""`run_block` by the settings and the tower that it is compiled for."""


def will_compile(config: RunConfig, model_type: str, device: torch.device) -> bool:
    """Says whether a run compiles its blocks: as `trainer.compile` has it, or where it pays.

    Args:
        config: The run's.
        model_type: transformers' name of the architecture.
        device: Where the model trains.
    """
    if (asked := config.trainer.compile) is not None:
        return asked
    if device.type != "cuda":
        return False
    reason = None
    if not config.data.has_one_length:
        reason = "batches differ in length, and each new length may cost a compilation; data.packing=true gives one"
    elif "moe" in model_type:
        reason = "the experts' numbers of tokens differ from step to step"
    if reason is not None:
        log.info("trainer.compile=null: not compiled: %s", reason)
    return reason is None


def graph_settings(config: RunConfig) -> str:
    """Returns a name of what a run's programs depend on: all that makes its result but the seed and the optimiser."""
    settings = {key: value for key, value in identity(config).items() if not key.startswith(("seed", "optim."))}
    return json.dumps(settings, sort_keys=True, default=str)


def compile_blocks(model: nn.Module, one_length: bool, settings: str = "", hooked: bool = False) -> bool:
    """Makes both towers run compiled blocks in training, in place.

    Args:
        model: The Qwen3-VL, with its adapters in place.
        one_length: All training batches have as many tokens.
        settings: Name of what shapes depend on. Models of the same in a process share programs, others do not: a
            program that met two shapes is made for any, and would not be what a run by itself has.
        hooked: Something will hang on calls of a block that can not be compiled: then its forward alone is.

    Returns:
        Whether a model of these settings was compiled in this process before.
    """
    is_known = any(of == settings for of, _ in _own_blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _PROGRAMS)
    towers: Any = model.model
    for tower, blocks, varying in (
        (towers.language_model, towers.language_model.layers, None if one_length else 1),
        (towers.visual, towers.visual.blocks, 0),
    ):
        # Where embeddings are frozen, the first layer's input alone needs no gradient, and would cost a second
        # compilation of what all others share: longer than its gradient takes in a whole run.
        setattr(tower, FOLLOWS_INPUT, True)
        if hooked:
            _compile_forwards(blocks, varying)
        else:
            tower.run_block = _compiled(_own_block(settings, type(tower).__name__), varying)
    # The number of supervised tokens differs from batch to batch.
    head: Any = model.lm_head
    head.slopes = torch.compile(fused_slopes, dynamic=True)
    if not is_known:
        log.info("compiling decoder layers and ViT blocks; the first step takes longer")
    return is_known


def _own_block(settings: str, tower: str) -> Callable[..., Tensor]:
    """Returns a copy of `run_block` with code of its own: dynamo keeps programs by it, and what it knows of shapes.

    Two towers with one would each meet the other's shapes, and have programs for any length, which are slower.
    """
    if (settings, tower) not in _own_blocks:
        assert isinstance(run_block, FunctionType)
        name = f"run_block_{len(_own_blocks)}"
        _own_blocks[settings, tower] = FunctionType(
            run_block.__code__.replace(co_name=name), run_block.__globals__, name
        )
    return _own_blocks[settings, tower]


def _compile_forwards(blocks: Iterable[nn.Module], varying: int | None) -> None:
    """Gives blocks of one type a forward of their own: one program for all in training, the plain one elsewhere."""
    plain: Any = None
    for block in blocks:
        if plain is None:
            plain = type(block).forward
            run = _compiled(plain, varying)
        block.forward = partial(_forward, run, plain, block)  # type: ignore[method-assign]


def _forward(
    run: Callable[..., Tensor], plain: Callable[..., Tensor], block: nn.Module, *args: Any, **told: Any
) -> Any:
    return (run if block.training else plain)(block, *args, **told)


def _compiled(function: Callable[..., Tensor], varying: int | None) -> Callable[..., Tensor]:
    """Returns a compiled function of a block, its hidden state and what else it is told.

    Args:
        function: `run_block`, or a block's forward.
        varying: The dimension of the hidden state that differs between batches, beside their number of samples; None
            where none does.
    """
    program = torch.compile(function)

    def run(block: nn.Module, hidden: Tensor, **told: Any) -> Tensor:
        for name in ("cu_seqlens", "cu_seq_lens_q"):
            if name in told:
                torch._dynamo.maybe_mark_dynamic(told[name], 0)
        for tensor in (hidden, *told["position_embeddings"]) if varying is not None else ():
            torch._dynamo.maybe_mark_dynamic(tensor, varying)
        return program(block, hidden, **told)

    return run


def report_programs() -> None:
    """Logs how many programs were compiled, and where blocks fell back to Python; imports no compiler."""
    count = _counts("stats").get("unique_graphs", 0)
    if count > _MANY:
        # Each takes seconds of the step that meets it, and a call tries all that came before its own.
        why = "blocks that are alike share one; TORCH_LOGS=recompiles says what differs"
        log.warning("compiled %d programs: %s", count, why)
    elif count:
        log.info("compiled %d programs", count)
    for reason, count in graph_breaks().items():
        log.warning("compiled blocks fell back to Python in %d places: %s", count, reason)


def graph_breaks() -> dict[str, int]:
    """Returns the reasons for which compiled blocks fell back to Python, and how often; imports no compiler."""
    return _counts("graph_break")


def _counts(kind: str) -> dict[str, int]:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return {} if dynamo is None else dict(dynamo.counters[kind])


def forget_programs() -> None:
    """Lets blocks be compiled anew, where some are, after their forward pass has become another."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def forget_counts() -> None:
    """Begins anew to count graphs and graph breaks, of which a process may have had other runs' before."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.utils.counters.clear()
