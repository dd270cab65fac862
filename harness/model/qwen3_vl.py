"""Any Qwen3-VL checkpoint: dense, mixture of experts or Thinking, from a folder or a hub id."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from harness.errors import reject
from harness.model.rope_scaling import parse
from harness.registry import register

if TYPE_CHECKING:
    import torch

    from harness.model.loading import Loaded
    from harness.model.weights import Weights


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


class InitStrategy(Enum):
    """Rule for weights that the checkpoint does not give; `mean` is for the rows of new tokens alone."""

    mean = "mean"
    zero = "zero"
    uniform = "uniform"
    normal = "normal"
    xavier_uniform = "xavier_uniform"
    xavier_normal = "xavier_normal"
    kaiming_uniform = "kaiming_uniform"
    kaiming_normal = "kaiming_normal"
    orthogonal = "orthogonal"


@dataclass(kw_only=True, slots=True)
class Qwen3VLConfig:
    """Where the checkpoint lies, how its weights are held, and what is added to it."""

    name: str = "qwen3_vl"
    path: str = MISSING
    """Checkpoint folder that transformers can load, a hub id, or `harness:tiny` for the one in this package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; null takes the default branch. Refused for a folder."""
    dtype: Dtype = Dtype.auto
    """Storage type of the base weights; auto takes the checkpoint's own. Adapters have their own (`tuner.dtype`)."""
    attention: Attention = Attention.auto
    """Attention kernel; auto takes varlen, which needs no package, on the CPU and for weights of 16 bits, else sdpa; in
    varlen's place flash_attention_4, where it is installed (extra `hopper`) and the GPU is a Hopper or later."""
    new_special_tokens: list[str] = field(default_factory=list)
    """Tokens to add, each a text or the path of a .txt file with one a line: `["<cat>",tokens.txt]`. Rows may use
    them; each stays one token."""
    train_new_tokens: bool = False
    """Of the embedding and the head train the rows of new_special_tokens alone, whatever the tuner and the policy."""
    init_strategy: InitStrategy | None = None
    """Rule for the rows of new tokens (null: mean of the old rows) and for matrices that the checkpoint lacks (null or
    mean: refuse it)."""
    rope_scaling: Any = None
    """Longer contexts: linear, dynamic or yarn with max_model_len, or a map {type: yarn, factor: 2.0}, JSON too. For
    adapters set it at inference as well."""
    max_model_len: int | None = None
    """Longest sample in tokens that rope_scaling makes room for; the factor is this by the checkpoint's own length,
    rounded up."""

    def __post_init__(self) -> None:
        if self.train_new_tokens and not self.new_special_tokens:
            raise reject("model.train_new_tokens", "true", "there are none: give model.new_special_tokens")
        if self.init_strategy is InitStrategy.mean and not self.new_special_tokens:
            raise reject("model.init_strategy", "mean", "is for new tokens alone: give model.new_special_tokens")
        parse(self.rope_scaling, self.max_model_len)


@register("model", Qwen3VLConfig)
def build(config: Qwen3VLConfig, device: "torch.device | None" = None, weights: "Weights | None" = None) -> "Loaded":
    """Loads the weights onto a device, everything frozen; processors are loaded apart by `model.processor`.

    Args:
        config: The model config.
        device: Where the model will train; None is the CPU.
        weights: What `model.weights.begin` has begun to read for it.
    """
    import torch

    from harness.model.loading import load

    return load(config, device or torch.device("cpu"), weights)
