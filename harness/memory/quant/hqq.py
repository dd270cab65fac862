"""HQQ (Badri and Shaji, mobiusml.github.io/hqq_blog): integers whose zeros minimise an l_p norm of the error, p < 1.

    W = (q - zero) scale, a scale and a zero for each group of `group_size` weights

No calibration data: half-quadratic steps on the weights alone, seconds a layer's size on a GPU. The library finds q,
scale and zero; they are held in the type of the weight, as there, but packed here: its packing depends on the axis.
"""

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

_BITS = (8, 4, 3, 2, 1)


@dataclass(kw_only=True, slots=True)
class HqqConfig(QuantConfig):
    """Defaults of the library."""

    library: ClassVar[Library] = Library("hqq", "hqq", "hqq")
    name: str = "hqq"
    bits: int = 4
    """Bits of a weight: 8, 4, 3, 2 or 1; a group's scale and zero come on top."""
    group_size: int = 64
    """Weights with one scale and one zero, 32 bits together in bfloat16; a multiple of 8 that divides every layer."""
    axis: int = 1
    """Groups lie along inputs (1) or outputs (0)."""

    def __post_init__(self) -> None:
        QuantConfig.__post_init__(self)
        if self.bits not in _BITS:
            raise reject("memory.quant.bits", self.bits, f"known: {', '.join(map(str, _BITS))}")
        if self.group_size < 8 or self.group_size % 8:
            raise reject("memory.quant.group_size", self.group_size, "must be a multiple of 8")
        if self.axis not in (0, 1):
            raise reject("memory.quant.axis", self.axis, "must be 0 (outputs) or 1 (inputs)")

    def bytes_of(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Returns the bytes of a quantised weight (E, D) that had `itemsize` bytes a value."""
        from harness.memory.quant.grouped import packed_bytes

        return packed_bytes(outputs * inputs, self.bits) + 2 * itemsize * (outputs * inputs // self.group_size)


@register("memory/quant", HqqConfig)
def build(config: HqqConfig, model: "PreTrainedModel", device: "torch.device") -> None:
    """Quantises the linear layers, in place and on the device.

    Args:
        config: Bits and groups.
        model: The frozen base, as loaded, on the host.
        device: Where it will train.

    Raises:
        UserError: hqq is not installed, a layer can not be cut into such groups, or see `quantize`.
    """
    import torch

    from harness.memory.quant.grouped import grouped
    from harness.memory.quant.replace import quantize

    with config.library.needed(f"memory/quant={config.name}"):
        from hqq.core.quantize import Quantizer

    def method(weight_ED: torch.Tensor, name: str) -> "Quantized":
        if weight_ED.shape[1 if config.axis else 0] % config.group_size:
            sizes = " x ".join(map(str, weight_ED.shape))
            raise reject("memory.quant.group_size", config.group_size, f"does not divide {name} ({sizes}) on its axis")
        values, found = Quantizer.quantize(
            weight_ED,
            nbits=config.bits,
            group_size=config.group_size,
            # As the library's own config has it.
            round_zero=config.bits == 4,
            axis=config.axis,
            bitpack=False,
            device=weight_ED.device,
        )
        # Copies: what the library makes in inference mode can not be kept for a backward pass.
        scale, zero = (found[key].to(weight_ED.dtype, copy=True) for key in ("scale", "zero"))
        return grouped(values.to(torch.uint8, copy=True), scale, zero, config.bits, tuple(weight_ED.shape))  # type: ignore[arg-type]

    quantize(model, config, device, method)
