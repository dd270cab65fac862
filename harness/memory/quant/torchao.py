"""torchao's weight-only integers: int8 with a scale for each output, int4 with scale and zero for each group.

    W = q scale          or          W = (q - zero) scale

Values are those of torchao's Int8WeightOnlyConfig and IntxWeightOnlyConfig. torchao's own int4 kernels have no
gradient and need packages of their own; here the integers are packed two to a byte and the products run in the type of
the others.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

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

    int4 = "int4"
    int8 = "int8"


@dataclass(kw_only=True, slots=True)
class TorchaoConfig(QuantConfig):
    """Defaults of the library."""

    library: ClassVar[Library] = Library("torchao", "torchao", "quant")
    name: str = "torchao"
    weights: Weights = Weights.int8
    """Type of the weights."""
    group_size: int = 128
    """Of int4: weights of a row with one scale and one zero; has to divide the inputs of each layer."""

    def __post_init__(self) -> None:
        QuantConfig.__post_init__(self)
        if self.group_size < 2:
            raise reject("memory.quant.group_size", self.group_size, "must be 2 or more")

    def bytes_of(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Returns the bytes of a quantised weight (E, D) that had `itemsize` bytes a value."""
        if self.weights is Weights.int8:
            # Scales in float32.
            return outputs * inputs + 4 * outputs
        # A zero is one of the sixteen values, in a byte.
        return -(-outputs * inputs // 2) + (itemsize + 1) * (outputs * inputs // self.group_size)


@register("memory/quant", TorchaoConfig)
def build(config: TorchaoConfig, model: "PreTrainedModel", device: "torch.device") -> None:
    """Quantises the linear layers, in place and on the device.

    Args:
        config: Type and groups.
        model: The frozen base, as loaded, on the host.
        device: Where it will train.

    Raises:
        UserError: torchao is not installed, a layer can not be cut into such groups, or see `quantize`.
    """
    import torch

    from harness.memory.quant.grouped import grouped
    from harness.memory.quant.replace import quantize

    with config.library.needed(f"memory/quant={config.name}"):
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup
    # Not the settings of Inductor that torchao recommends: they would hold for all that is compiled.
    wanted = (
        Int8WeightOnlyConfig(set_inductor_config=False)
        if config.weights is Weights.int8
        else IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, config.weights.name), granularity=PerGroup(config.group_size)
        )
    )

    def method(weight_ED: torch.Tensor, name: str) -> "Quantized":
        shape = weight_ED.shape[0], weight_ED.shape[1]
        if config.weights is Weights.int4 and shape[1] % config.group_size:
            remedy = f"does not divide the {shape[1]} inputs of {name}"
            raise reject("memory.quant.group_size", config.group_size, remedy)
        layer = torch.nn.Linear(shape[1], shape[0], bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight_ED, requires_grad=False)
        quantize_(layer, wanted)
        found: Any = layer.weight
        if config.weights is Weights.int8:
            return grouped(found.qdata, found.scale.view(-1, 1), None, 8, shape)
        # From -8 to 7 here.
        values_GH = (found.qdata + 8).to(torch.uint8).view(-1, config.group_size)
        zero_G1 = (found.zero_point + 8).to(torch.uint8).view(-1, 1)
        return grouped(values_GH, found.scale.view(-1, 1), zero_G1, 4, shape)

    quantize(model, config, device, method)
