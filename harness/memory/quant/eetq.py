"""EETQ (github.com/NetEase-FuXi/EETQ): 8-bit integers with a scale for each output, in kernels for NVIDIA GPUs.

    y = x (q diag(s)),   q in the kernels' own order

Nothing reads the weight back but the kernel itself: for the input gradient it multiplies the identity. Inputs and
outputs are float16, whatever the model's type: what is beyond 65,504 would be infinite. The kernels come from the hub
by the package `kernels` (kernels-community/quantization-eetq), as in transformers.
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

KERNELS = "kernels-community/quantization-eetq"
_VERSION = 1
"""That of transformers 5."""


@dataclass(kw_only=True, slots=True)
class EetqConfig(QuantConfig):
    """8 bits a weight; there is nothing to set."""

    library: ClassVar[Library] = Library("kernels", "kernels", "eetq")
    name: str = "eetq"

    def bytes_of(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Returns the bytes of a quantised weight (E, D): integers, and a half for each output."""
        return outputs * inputs + 2 * outputs


@register("memory/quant", EetqConfig)
def build(config: EetqConfig, model: "PreTrainedModel", device: "torch.device") -> None:
    """Quantises the linear layers, in place and on the device.

    Args:
        config: What stays as it is.
        model: The frozen base, as loaded, on the host.
        device: Where it will train.

    Raises:
        UserError: The kernels are not there, the device has none, or see `quantize`.
    """
    from harness.memory.quant.eetq_codec import quantized, use_kernels
    from harness.memory.quant.replace import quantize

    if device.type != "cuda":
        raise reject("memory/quant", config.name, f"has kernels for NVIDIA GPUs alone, and this is a {device.type}")
    with config.library.needed(f"memory/quant={config.name}"):
        from kernels import get_kernel

        try:
            use_kernels(get_kernel(KERNELS, version=_VERSION))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise reject("memory/quant", config.name, f"{KERNELS} can not be had ({reason}); use bnb8") from error

    def method(weight_ED: "torch.Tensor", name: str) -> "Quantized":
        return quantized(weight_ED)

    quantize(model, config, device, method)
