"""The model that a run will train, without weights: shapes, types and what trains, on the meta device.

What a tuner's start computes from weights or data changes values and no shape, so it is left out (`tuner.init`). New
special tokens add a few rows to two tables and are left out too.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from harness.config import RunConfig
from harness.errors import UserError
from harness.model.attention import pick_attention, use_varlen
from harness.model.checkpoint_path import resolve
from harness.model.loading import Loaded, skeleton
from harness.model.qwen3_vl import Attention, Dtype
from harness.registry import build
from harness.tuner.exceptions import check_exceptions
from harness.tuner.outlook import Outlook
from harness.tuner.tuned import Tuned

_META = torch.device("meta")


def outline(config: RunConfig, total_steps: int = 1000) -> Tuned:
    """Builds the tuned model of a run as the run does, in a second or two and without memory.

    Args:
        config: The run's.
        total_steps: Its optimiser steps, as far as known.

    Raises:
        UserError: As the run itself would, or the tuner can not be built without weights.
    """
    dtype = _dtype(config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = skeleton(config.model)
    finally:
        torch.set_default_dtype(before)
    model.config.dtype = dtype
    model.requires_grad_(False)
    picked = pick_attention(config.model.attention, dtype)
    if picked == Attention.varlen.name:
        use_varlen(model)
    else:
        model.set_attn_implementation(picked)
    policy = build("freeze", config.freeze, model)
    outlook = Outlook(total_steps, lambda *_: iter(()), _META, Path("start.safetensors"))
    loaded = Loaded(model, resolve(config.model.path))
    with torch.random.fork_rng(devices=[]):
        try:
            with _META:
                tuned = build("tuner", _without_start(config.tuner), loaded, policy, outlook)
        except (NotImplementedError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:120]
            raise UserError(
                f"tuner={config.tuner.name}: memory can not be predicted without weights ({reason})"
            ) from error
    if not config.model.new_special_tokens:
        check_exceptions(tuned, policy, config.tuner.name)
    return tuned


def _without_start(tuner: Any) -> Any:
    """Returns a tuner's config that starts from random numbers, where it lets choose."""
    by_name = {item.name: item for item in fields(tuner)}
    if "init" not in by_name:
        return tuner
    changes: dict[str, Any] = {"init": by_name["init"].default}
    if tuner.init in by_name:
        # Settings of a start are refused without it.
        changes[tuner.init] = type(getattr(tuner, tuner.init))()
    return replace(tuner, **changes)


def _dtype(config: RunConfig) -> torch.dtype:
    """Returns the type of the base weights; of a checkpoint that does not say it is bfloat16, as all released ones."""
    if config.model.dtype is not Dtype.auto:
        return getattr(torch, config.model.dtype.name)
    kind = AutoConfig.from_pretrained(resolve(config.model.path), revision=config.model.revision)
    return getattr(kind, "dtype", None) or kind.get_text_config().dtype or torch.bfloat16
