"""Loads weights with transformers, frozen: RoPE scaling, rows of new tokens, absent weights, the attention kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, modeling_utils
from transformers.utils import GENERATION_CONFIG_NAME

from harness.errors import UserError, reject
from harness.model.attention import check_available, pick_attention, use_varlen
from harness.model.checkpoint_path import MODEL_TYPES, resolve
from harness.model.initialisation import fill_absent
from harness.model.new_rows import NewTokens, add_rows
from harness.model.norm import use_closed_gradient
from harness.model.patch_embed import make_linear
from harness.model.prequantized import check_loads
from harness.model.processor import load_tokenizer
from harness.model.qwen3_vl import Attention, Dtype, InitStrategy, Qwen3VLConfig
from harness.model.rope_scaling import forget_longer_batches, parse, scale
from harness.model.varlen import Kernel
from harness.model.weights import Weights, begin

_CLASSES = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}

KERNELS = {Attention.varlen.name: Kernel.torch, Attention.flash_attention_4.name: Kernel.cute}
"""What runs under this package's own operators; the other packages run under transformers' interface."""


@dataclass(slots=True)
class Loaded:
    """A frozen base model and where it came from."""

    model: PreTrainedModel
    path: str
    """Folder or hub id that `from_pretrained` took."""
    new_tokens: NewTokens | None = None


_CPU = torch.device("cpu")


def load(config: Qwen3VLConfig, device: torch.device = _CPU, weights: Weights | None = None) -> Loaded:
    """Loads a checkpoint straight onto a device, with all parameters frozen.

    Args:
        config: Which checkpoint, and how.
        device: Where weights and buffers go.
        weights: What `weights.begin` returned for the same config and device, where a run began to read early.

    Raises:
        UserError: The path holds no Qwen3-VL, can not be reached, the attention kernel can not run here, or a setting
            does not fit the checkpoint.
    """
    path = resolve(config.path)
    if config.revision is not None and Path(path).is_dir():
        raise reject("model.revision", config.revision, f"{path} is a folder, which has no revisions")
    check_available(config.attention)
    # varlen depends on the type of the weights, which the checkpoint knows.
    later = config.attention in (Attention.auto, Attention.varlen, Attention.flash_attention_4)
    kind = _checkpoint_config(config, path)
    model, info = _from_pretrained(
        getattr(transformers, _CLASSES[kind.model_type]),
        path,
        weights or begin(config, device),
        revision=config.revision,
        config=kind,
        device_map=None if device.type == "cpu" else {"": device},
        dtype="auto" if config.dtype is Dtype.auto else getattr(torch, config.dtype.name),
        attn_implementation=Attention.sdpa.name if later else config.attention.name,
        trust_remote_code=False,
    )
    new_tokens = _initialise(model, config, path, info)
    picked = pick_attention(config.attention, model.dtype)
    if picked in KERNELS:
        use_varlen(model, KERNELS[picked])
    forget_longer_batches(model)
    model.requires_grad_(False)
    make_linear(model.model.visual)
    use_closed_gradient(model.model.language_model)
    return Loaded(model, path, new_tokens)


def text_config(config: Qwen3VLConfig) -> Any:
    """Returns the config of a checkpoint's text model, without its weights.

    Raises:
        UserError: As for `load`, as far as the checkpoint's config tells.
    """
    return _checkpoint_config(config, resolve(config.path)).text_config


def skeleton(config: Qwen3VLConfig) -> PreTrainedModel:
    """Makes the model of a checkpoint without its weights, on the meta device: names and shapes cost no memory.

    Raises:
        UserError: As for `load`, as far as the checkpoint's config tells.
    """
    path = resolve(config.path)
    kind = _checkpoint_config(config, path)
    with torch.device("meta"):
        model = getattr(transformers, _CLASSES[kind.model_type])(kind)
    use_closed_gradient(model.model.language_model)
    return model


def _initialise(model: PreTrainedModel, config: Qwen3VLConfig, path: str, info: dict[str, Any]) -> NewTokens | None:
    """Gives first values to what the checkpoint does not have: absent weights, and rows of new tokens."""
    missing, mismatched = sorted(info["missing_keys"]), [str(item[0]) for item in info["mismatched_keys"]]
    absent = sorted({*missing, *mismatched})
    if absent and (mismatched or config.init_strategy is None):
        raise reject("model.path", path, f"lacks {len(absent)} of the model's weights, {absent[0]} among them")
    if absent:
        assert config.init_strategy is not None
        fill_absent(model, absent, config.init_strategy)
    if config.new_special_tokens:
        ids = load_tokenizer(config)[1]
        return add_rows(model, ids, config.init_strategy or InitStrategy.mean)
    if config.init_strategy is not None and not absent:
        remedy = "has no effect: the checkpoint has all weights, and there are no model.new_special_tokens"
        raise reject("model.init_strategy", config.init_strategy.name, remedy)
    return None


def _from_pretrained(
    model_class: Any, path: str, weights: Weights | None, revision: str | None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Makes the model; keys that are absent are told by name, for transformers would fill them with random numbers."""
    make = partial(model_class.from_pretrained, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    try:
        if weights is None:
            return make(path, revision=revision)
        with _without_warmup():
            model, info = make(None, state_dict=weights.take())
        # What transformers takes from the folder beside the weights.
        model.config.name_or_path = model.name_or_path = path
        if (Path(path) / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
        return model, info
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers makes whatever model config.json describes, unchecked
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise reject("model.path", path, f"its weights can not be read ({reason})") from error


@contextmanager
def _without_warmup() -> Iterator[None]:
    """Keeps transformers from asking for the model's memory at once, as it does ahead of tensors that are not there."""
    warmup = modeling_utils.caching_allocator_warmup
    modeling_utils.caching_allocator_warmup = lambda *_: None
    try:
        yield
    finally:
        modeling_utils.caching_allocator_warmup = warmup


def _checkpoint_config(config: Qwen3VLConfig, path: str) -> Any:
    """Reads the checkpoint's config, RoPE scaled as asked for."""
    try:
        kind: Any = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except Exception as error:  # what stands in a damaged file meets transformers unchecked
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise reject("model.path", path, f"neither a folder nor a hub id that can be reached ({reason})") from error
    if kind.model_type not in MODEL_TYPES:
        raise UserError(f"model.path={path}: is a {kind.model_type!r} checkpoint, not a Qwen3-VL")
    check_loads(kind, path)
    if (scaling := parse(config.rope_scaling, config.max_model_len)) is not None:
        scale(kind.text_config, scaling)
    return kind
