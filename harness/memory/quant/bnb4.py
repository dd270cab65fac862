"""4 bits by bitsandbytes: NormalFloat4 of QLoRA (Dettmers et al., arXiv 2305.14314), or FP4.

    W = absmax[block] code[i], i of 4 bits, a block of 64 neighbouring weights

nf4's code has the quantiles of a normal distribution (appendix E). Double quantisation holds absmax in 8 bits too, 256
of them to a scale: 4.127 bits a weight instead of 4.5 (section 3). Deviations from bitsandbytes' own layer: the product
keeps its scales' types whatever the model is cast to, and is one operator that compiled code takes whole.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.library import Library
from harness.memory.quant.config import QuantConfig
from harness.model.qwen3_vl import Dtype
from harness.registry import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.memory.quant.linear import Quantized

_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class Code(Enum):
    """The sixteen values of a 4-bit weight."""

    nf4 = "nf4"
    fp4 = "fp4"


class Storage(Enum):
    """As what the bits lie in memory."""

    uint8 = "uint8"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@dataclass(kw_only=True, slots=True)
class Bnb4Config(QuantConfig):
    """About 4.1 bits a weight; defaults of QLoRA, which are ms-swift's."""

    library: ClassVar[Library] = Library("bitsandbytes", "bitsandbytes", "quant")
    name: str = "bnb4"
    code: Code = Code.nf4
    """nf4, for weights that are normally distributed, as trained ones are; or fp4."""
    double_quant: bool = True
    """Quantise the blocks' scales as well: 0.37 bits a weight less."""
    blocksize: int = 64
    """Neighbouring weights with one scale: 32 to 4096, a power of two. Fewer are closer to the weights, and larger."""
    compute_dtype: Dtype = Dtype.auto
    """Type of the products; auto follows memory.precision."""
    storage: Storage = Storage.uint8
    """Type under which the bits are held; values are the same. What shards and casts parameters (FSDP2) has to be given
    uint8, which is not cast, or the type that it casts to."""

    def __post_init__(self) -> None:
        QuantConfig.__post_init__(self)
        if self.blocksize not in _BLOCKS:
            raise reject("memory.quant.blocksize", self.blocksize, f"known: {', '.join(map(str, _BLOCKS))}")

    def bytes_of(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Returns the bytes of a quantised weight.

        Args:
            outputs: E.
            inputs: D.
            itemsize: Of the weight as it was, in bytes.
        """
        blocks = -(-outputs * inputs // self.blocksize)
        # Double: a byte a block, a float for 256 of them, the code of 256 floats and the mean.
        scales = blocks + 4 * -(-blocks // 256) + 4 * 257 if self.double_quant else 4 * blocks
        return -(-outputs * inputs // 2) + scales


@register("memory/quant", Bnb4Config)
def build(config: Bnb4Config, model: "PreTrainedModel", device: "torch.device") -> None:
    """Quantises the linear layers, in place and on the device.

    Args:
        config: Code, scales and types.
        model: The frozen base, as loaded, on the host.
        device: Where it will train.

    Raises:
        UserError: bitsandbytes is not installed, or see `quantize`.
    """
    import torch

    from harness.memory.quant.replace import quantize

    with config.library.needed(f"memory/quant={config.name}"):
        from harness.memory.quant.bnb4_codec import quantized

    compute = None if config.compute_dtype is Dtype.auto else getattr(torch, config.compute_dtype.name)
    storage = getattr(torch, config.storage.name)

    def method(weight_ED: torch.Tensor, name: str) -> "Quantized":
        return quantized(weight_ED, config.code.name, config.blocksize, config.double_quant, storage)

    quantize(model, config, device, method, compute)
