"""LLM.int8 by bitsandbytes (Dettmers et al., arXiv 2208.07339): products of 8-bit integers, outliers apart.

    x W^T = diag(s_x) (x_q W_q^T) diag(s_W) over inputs without outliers + x_o W_o^T over those with

Rows of x and W have a scale each. An input of which some entry is larger than `threshold` is multiplied in x's own type
(section 3.2). The input gradient is that of the weight read back, in the type of the product; x's rounding counts as
the identity.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.library import Library
from harness.memory.quant.config import QuantConfig
from harness.registry import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.memory.quant.linear import Quantized


@dataclass(kw_only=True, slots=True)
class Bnb8Config(QuantConfig):
    """8 bits a weight, and activations in 8 bits in the forward pass."""

    library: ClassVar[Library] = Library("bitsandbytes", "bitsandbytes", "quant")
    name: str = "bnb8"
    threshold: float = 6.0
    """Inputs of which some entry is larger than this are multiplied apart; the paper's. 0 multiplies all in 8 bits,
    which never waits for the device."""

    def __post_init__(self) -> None:
        QuantConfig.__post_init__(self)
        if not 0 <= self.threshold < math.inf:
            raise reject("memory.quant.threshold", self.threshold, "must be more than 0, or 0 for none")

    def bytes_of(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Returns the bytes of a quantised weight (E, D): integers, and a float for each row."""
        return outputs * inputs + 4 * outputs


@register("memory/quant", Bnb8Config)
def build(config: Bnb8Config, model: "PreTrainedModel", device: "torch.device") -> None:
    """Quantises the linear layers, in place and on the device.

    Args:
        config: Threshold and what stays as it is.
        model: The frozen base, as loaded, on the host.
        device: Where it will train.

    Raises:
        UserError: bitsandbytes is not installed, or see `quantize`.
    """
    from harness.memory.quant.replace import quantize

    with config.library.needed(f"memory/quant={config.name}"):
        from harness.memory.quant.bnb8_codec import quantized

    def method(weight_ED: "torch.Tensor", name: str) -> "Quantized":
        return quantized(weight_ED, config.threshold)

    quantize(model, config, device, method)
