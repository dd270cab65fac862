"""Any Qwen3-VL checkpoint: dense, mixture of experts or Thinking, from a folder or a hub id."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from omegaconf import MISSING

from harness.registry import register

if TYPE_CHECKING:
    from harness.model.loading import Loaded


class Dtype(Enum):
    """Storage type of the base weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(Enum):
    """Attention kernel: varlen is the FlashAttention that comes with torch, the others have transformers' names."""

    auto = "auto"
    varlen = "varlen"
    sdpa = "sdpa"
    eager = "eager"
    flex_attention = "flex_attention"
    flash_attention_2 = "flash_attention_2"
    flash_attention_3 = "flash_attention_3"
    flash_attention_4 = "flash_attention_4"


@dataclass(kw_only=True, slots=True)
class Qwen3VLConfig:
    """Where the checkpoint lies and how its weights are held."""

    name: str = "qwen3_vl"
    path: str = MISSING
    """Checkpoint folder that transformers can load, a hub id, or `harness:tiny` for the one in this package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; null takes the default branch. Refused for a folder."""
    dtype: Dtype = Dtype.auto
    """Storage type of the base weights; auto takes the checkpoint's own. Adapters have their own (`tuner.dtype`)."""
    attention: Attention = Attention.auto
    """Attention kernel; auto takes varlen, which needs no package, on a GPU for weights of 16 bits, else sdpa."""


@register("model", Qwen3VLConfig)
def build(config: Qwen3VLConfig) -> "Loaded":
    """Loads the weights onto the CPU, everything frozen; processors are loaded apart by `model.processor`."""
    from harness.model.loading import load

    return load(config)
