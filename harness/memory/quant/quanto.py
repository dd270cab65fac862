"""optimum-quanto's weights: int8 or float8 with a scale for each output, int4 or int2 with scale and zero for groups.

    W = q scale          or          W = (q - zero) scale

Scales are the largest magnitude of a row, or the range of a group; nothing is calibrated. The library finds q, scale
and zero. Deviation: it subtracts zero x scale behind the product with the scale, which is the same up to rounding.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.library import Library
from harness.memory.quant.config import QuantConfig
from harness.registry import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.memory.quant.linear import Quantized


class Weights(Enum):
    """Type of a weight."""

    int2 = "int2"
    int4 = "int4"
    int8 = "int8"
    float8 = "float8"


_BITS = {Weights.int2: 2, Weights.int4: 4, Weights.int8: 8, Weights.float8: 8}


@dataclass(kw_only=True, slots=True)
class QuantoConfig(QuantConfig):
    """Defaults of the library."""

    library: ClassVar[Library] = Library("optimum.quanto", "optimum-quanto", "quant")
    name: str = "quanto"
    weights: Weights = Weights.int8
    """Type of the weights: int8, float8 (e4m3), int4 or int2. Products run in the type of the others."""
    group_size: int = 128
    """Of int4 and int2: weights of a row with one scale and one zero; has to divide the inputs of each layer."""

    def __post_init__(self) -> None:
        QuantConfig.__post_init__(self)
        if self.group_size < 2:
            raise reject("memory.quant.group_size", self.group_size, "must be 2 or more")

    def bytes_of(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Returns the bytes of a quantised weight (E, D) that had `itemsize` bytes a value."""
        from harness.memory.quant.grouped import packed_bytes

        bits = _BITS[self.weights]
        scales = outputs if bits == 8 else 2 * outputs * inputs // self.group_size
        return packed_bytes(outputs * inputs, bits) + itemsize * scales


@register("memory/quant", QuantoConfig)
def build(config: QuantoConfig, model: "PreTrainedModel", device: "torch.device") -> None:
    """Quantises the linear layers, in place and on the device.

    Args:
        config: Type and groups.
        model: The frozen base, as loaded, on the host.
        device: Where it will train.

    Raises:
        UserError: optimum-quanto is not installed, a layer can not be cut into such groups, or see `quantize`.
    """
    import torch

    from harness.memory.quant.grouped import grouped
    from harness.memory.quant.replace import quantize

    with config.library.needed(f"memory/quant={config.name}"):
        from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qtypes

    bits = _BITS[config.weights]
    kind = qtypes["qfloat8" if config.weights is Weights.float8 else f"q{config.weights.name}"]

    def method(weight_ED: torch.Tensor, name: str) -> "Quantized":
        shape = weight_ED.shape[0], weight_ED.shape[1]
        if bits == 8:
            scale_E1 = AbsmaxOptimizer()(weight_ED, qtype=kind, axis=0)
            values_ED = torch.ops.quanto.quantize_symmetric(weight_ED, dtype=kind.dtype, axis=0, scale=scale_E1)
            return grouped(values_ED, scale_E1, None, bits, shape)
        if shape[1] % config.group_size:
            remedy = f"does not divide the {shape[1]} inputs of {name}"
            raise reject("memory.quant.group_size", config.group_size, remedy)
        scale_G1, shift_G1 = MaxOptimizer()(weight_ED, qtype=kind, axis=0, group_size=config.group_size)
        # Groups of equal weights have no range.
        scale_G1 = torch.where(scale_G1 == 0, torch.ones_like(scale_G1), scale_G1)
        values_GH = torch.ops.quanto.quantize_affine(
            weight_ED, bits=bits, axis=0, group_size=config.group_size, scale=scale_G1, shift=shift_G1
        )
        return grouped(values_GH, scale_G1, shift_G1 / scale_G1, bits, shape)

    quantize(model, config, device, method)
