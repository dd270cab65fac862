"""The base as its checkpoint has it: in `model.dtype`, or quantised already, as AWQ and GPTQ checkpoints are.

`harness/model/prequantized.py` says which of those load, and which tuners train on them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.registry import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class NoneConfig:
    """Quantises nothing."""

    changes_base: ClassVar[bool] = False
    """Whether frozen weights are no more those of the checkpoint."""
    name: str = "none"


@register("memory/quant", NoneConfig)
def build(config: NoneConfig, model: "PreTrainedModel", device: "torch.device") -> None:
    """Leaves the model as it is; it was loaded onto the device."""
