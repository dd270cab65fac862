"""Loads weights with transformers, frozen, and says which attention kernel was picked."""

import importlib.util
import logging
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from harness.errors import UserError, reject
from harness.model.checkpoint_path import MODEL_TYPES, resolve
from harness.model.patch_embed import make_linear
from harness.model.qwen3_vl import Attention, Dtype, Qwen3VLConfig

log = logging.getLogger(__name__)

_PACKAGES = {
    Attention.flash_attention_2: ("flash_attn", "pip install flash-attn --no-build-isolation"),
    Attention.flash_attention_3: ("flash_attn_interface", "build flash-attention's hopper folder"),
    Attention.flash_attention_4: ("flash_attn.cute", "pip install flash-attn-4"),
}
_CLASSES = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}


@dataclass(slots=True)
class Loaded:
    """A frozen base model and where it came from."""

    model: PreTrainedModel
    path: str
    """Folder or hub id that `from_pretrained` took."""


def load(config: Qwen3VLConfig) -> Loaded:
    """Loads a checkpoint onto the CPU with all parameters frozen.

    Raises:
        UserError: The path holds no Qwen3-VL, can not be reached, or an attention package is missing.
    """
    path = resolve(config.path)
    if config.revision is not None and Path(path).is_dir():
        raise reject("model.revision", config.revision, f"{path} is a folder, which has no revisions")
    attention = pick_attention(config.attention)
    if config.attention is Attention.auto:
        log.info("model.attention=auto picked %s", attention)
    kind = _model_type(path, config.revision)
    model_class = getattr(transformers, _CLASSES[kind])
    model, info = _from_pretrained(
        model_class,
        path,
        revision=config.revision,
        dtype="auto" if config.dtype is Dtype.auto else getattr(torch, config.dtype.name),
        attn_implementation=attention,
        trust_remote_code=False,
    )
    absent = sorted(set(info["missing_keys"]) | {str(item[0]) for item in info["mismatched_keys"]})
    if absent:
        raise reject("model.path", path, f"lacks {len(absent)} of the model's weights, {absent[0]} among them")
    model.requires_grad_(False)
    make_linear(model.model.visual)
    return Loaded(model, path)


def _from_pretrained(model_class: Any, path: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads weights; keys that are absent are told by name, for transformers would fill them with random numbers."""
    try:
        return model_class.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise reject("model.path", path, f"its weights can not be read ({reason})") from error


def pick_attention(wanted: Attention) -> str:
    """Returns transformers' name of the kernel to use.

    Raises:
        UserError: The kernel's package is not installed, or it needs a GPU.
    """
    if wanted is Attention.auto:
        flash = torch.cuda.is_available() and _installed("flash_attn")
        picked = Attention.flash_attention_2 if flash else Attention.sdpa
        return picked.name
    if wanted in _PACKAGES:
        package, command = _PACKAGES[wanted]
        if not _installed(package):
            raise reject("model.attention", wanted.name, f"the package {package} is not installed: {command}")
        if not torch.cuda.is_available():
            raise reject("model.attention", wanted.name, "needs a GPU; use sdpa here")
    return wanted.name


def _installed(package: str) -> bool:
    """Looks for a package and, first, its parents: `find_spec` raises where a parent is missing."""
    return all(importlib.util.find_spec(name) for name in accumulate(package.split("."), "{}.{}".format))


def _model_type(path: str, revision: str | None) -> str:
    try:
        config: Any = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise reject("model.path", path, f"neither a folder nor a hub id that can be reached ({reason})") from error
    if config.model_type not in MODEL_TYPES:
        raise UserError(f"model.path={path}: is a {config.model_type!r} checkpoint, not a Qwen3-VL")
    return config.model_type
