"""Frozen linear layers of the LLM in float8: products at up to twice the speed of bfloat16, on Hopper and newer.

What is in float8 and how it is scaled: `harness.memory.fp8_linear`. Norms, embeddings, the head, experts of a mixture
and adapters stay as they are. The loss differs from that over the same weights in bfloat16; `benchmarks/loss_curve.py`
measures by how much.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.memory.config import MemoryConfig, Precision
from harness.registry import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class Fp8BaseConfig(MemoryConfig):
    """Speed against exactness of the frozen weights. Needs a GPU of compute capability 8.9, and bfloat16."""

    changes_base: ClassVar[bool] = True
    """Whether frozen weights are no more those of the checkpoint, so that no model is exported with them."""
    name: str = "fp8_base"
    keep_transpose: bool = True
    """Keep each weight by columns too, for the backward pass: 2 bytes a weight in all, and no time spent on it. false:
    1 byte, half of bfloat16."""

    def saved_bytes(self, model: "PreTrainedModel") -> int:
        """Returns by how much smaller the weights of a model will be."""
        from harness.memory.fp8_replace import frozen_layers

        weights = sum(layer.weight.numel() for _, layer in frozen_layers(model))
        return 0 if self.keep_transpose else weights

    def __post_init__(self) -> None:
        """Checks that products are to run in bfloat16."""
        MemoryConfig.__post_init__(self)
        if self.precision not in (Precision.auto, Precision.bf16):
            raise reject("memory.precision", self.precision.name, "float8 products give bfloat16; use auto or bf16")


@register("memory", Fp8BaseConfig)
def build(config: Fp8BaseConfig, model: "PreTrainedModel", device: "torch.device | None" = None) -> None:
    """Replaces the LLM's frozen linear layers, in place and on the device, then sets the policies.

    Args:
        config: The settings, auto resolved.
        model: The base model, with any adapter already in its modules.
        device: Where the model will train; None: where it is.

    Raises:
        UserError: The device has no float8 products, the weights are not bfloat16, or no linear layer is frozen.
    """
    from harness.memory.fp8_replace import check_device, replace
    from harness.memory.standard import build as build_standard

    device = device or model.device
    check_device(device)
    replace(model, device, config.keep_transpose)
    build_standard(config, model, device)  # type: ignore[arg-type]
