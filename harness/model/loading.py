"""Loads weights with transformers, frozen, and sets the attention kernel."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from harness.errors import UserError, reject
from harness.model.attention import check_available, pick_attention, use_varlen
from harness.model.checkpoint_path import MODEL_TYPES, resolve
from harness.model.patch_embed import make_linear
from harness.model.qwen3_vl import Attention, Dtype, Qwen3VLConfig

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
        UserError: The path holds no Qwen3-VL, can not be reached, or the attention kernel can not run here.
    """
    path = resolve(config.path)
    if config.revision is not None and Path(path).is_dir():
        raise reject("model.revision", config.revision, f"{path} is a folder, which has no revisions")
    check_available(config.attention)
    # varlen depends on the type of the weights, which the checkpoint knows.
    later = config.attention in (Attention.auto, Attention.varlen)
    kind = _model_type(path, config.revision)
    model_class = getattr(transformers, _CLASSES[kind])
    model, info = _from_pretrained(
        model_class,
        path,
        revision=config.revision,
        dtype="auto" if config.dtype is Dtype.auto else getattr(torch, config.dtype.name),
        attn_implementation=Attention.sdpa.name if later else config.attention.name,
        trust_remote_code=False,
    )
    absent = sorted(set(info["missing_keys"]) | {str(item[0]) for item in info["mismatched_keys"]})
    if absent:
        raise reject("model.path", path, f"lacks {len(absent)} of the model's weights, {absent[0]} among them")
    if pick_attention(config.attention, model.dtype) == Attention.varlen.name:
        use_varlen(model)
    model.requires_grad_(False)
    make_linear(model.model.visual)
    return Loaded(model, path)


def skeleton(config: Qwen3VLConfig) -> PreTrainedModel:
    """Makes the model of a checkpoint without its weights, on the meta device: names and shapes cost no memory.

    Raises:
        UserError: As for `load`, as far as the checkpoint's config tells.
    """
    path = resolve(config.path)
    model_class = getattr(transformers, _CLASSES[_model_type(path, config.revision)])
    with torch.device("meta"):
        return model_class(AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False))


def _from_pretrained(model_class: Any, path: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads weights; keys that are absent are told by name, for transformers would fill them with random numbers."""
    try:
        return model_class.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise reject("model.path", path, f"its weights can not be read ({reason})") from error


def _model_type(path: str, revision: str | None) -> str:
    try:
        config: Any = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise reject("model.path", path, f"neither a folder nor a hub id that can be reached ({reason})") from error
    if config.model_type not in MODEL_TYPES:
        raise UserError(f"model.path={path}: is a {config.model_type!r} checkpoint, not a Qwen3-VL")
    return config.model_type
