"""What every way of quantising a base has: the modules that it leaves alone."""

from dataclasses import dataclass, field
from typing import ClassVar

from harness.errors import reject
from harness.library import Library


@dataclass(kw_only=True, slots=True)
class QuantConfig:
    """Shared fields; a method extends it by fields, and by `bytes_of`, which needs no weights."""

    changes_base: ClassVar[bool] = True
    """Whether frozen weights are no more those of the checkpoint."""
    library: ClassVar[Library]
    """What quantises."""
    skip: list[str] = field(default_factory=lambda: ["model.visual", "lm_head"])
    """Modules that stay as they are, each a run of whole parts of their names: `model.visual`, `lm_head`, `layers.0`,
    `down_proj`. By default the ViT and the aligner, which are small and where 4 bits cost most, and the head, whose
    logits are the loss; with tied embeddings it is the embedding too and has to stay."""

    def __post_init__(self) -> None:
        if empty := [entry for entry in self.skip if not entry.strip(".")]:
            raise reject("memory.quant.skip", empty[0], "would name every module; use memory/quant=none")
