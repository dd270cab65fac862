"""What every memory implementation has: compute type, what is computed again or waits on the host, and the budget."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from harness.errors import reject
from harness.memory.quant.none import NoneConfig
from harness.memory.strategy.auto import AutoConfig

POLICIES = ("none", "selective", "full")
"""By falling memory and rising time; see `harness.memory.checkpointing`."""
AUTO = "auto"
_TRUTH = {"True": "full", "False": "none"}


class Precision(Enum):
    """Type in which matrix products run."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


@dataclass(kw_only=True, slots=True)
class MemoryConfig:
    """Shared fields; an implementation extends it by fields only."""

    precision: Precision = Precision.auto
    """Compute type. auto follows the base weights; bf16 or fp16 over float32 weights is mixed precision."""
    checkpointing: str = "none"
    """What the LLM's layers compute again in the backward pass, to keep less: none; selective (norms, activations and
    wide products: attention and the other products are kept); full (all but each layer's input, about a third more
    time); auto (what the card's free memory or budget_gib asks for). true is full, false is none."""
    checkpointed_layers: int | None = None
    """How many of the LLM's layers, from the first, do so; the others keep all. Null: each. auto chooses it."""
    vit_checkpointing: str | None = None
    """none, selective or full for the ViT; null follows `checkpointing`. Of a frozen ViT nothing is kept anyway."""
    offload_activations: bool = False
    """Hold the inputs of checkpointed layers in the host's memory until the backward pass needs them; needs a GPU."""
    strategy: Any = field(default_factory=AutoConfig)
    """How the run's processes share the work, chosen by memory/strategy=."""
    sequence_parallel: int = 1
    """Processes that share a micro-batch (Ulysses): each has a slice of its tokens, in attention a share of the heads,
    and some of its images, so that longer samples fit. The global batch counts processes / sequence_parallel."""
    budget_gib: float | None = None
    """GiB of the GPU that this process may allocate, a hard cap, and what auto plans for. Null: all that is free."""
    quant: Any = field(default_factory=NoneConfig)
    """How the frozen base is held, chosen by memory/quant=."""

    def __post_init__(self) -> None:
        """Spells truth values by name, and checks ranges."""
        self.checkpointing = _policy("checkpointing", self.checkpointing, (*POLICIES, AUTO))
        if self.vit_checkpointing is not None:
            self.vit_checkpointing = _policy("vit_checkpointing", self.vit_checkpointing, POLICIES)
        for key in ("checkpointed_layers", "offload_activations"):
            if getattr(self, key) and self.checkpointing == "none":
                raise reject(f"memory.{key}", getattr(self, key), "has no effect with memory.checkpointing=none")
        if self.checkpointing == AUTO:
            for key in ("checkpointed_layers", "vit_checkpointing", "offload_activations"):
                if getattr(self, key):
                    raise reject(f"memory.{key}", getattr(self, key), "is chosen by memory.checkpointing=auto")
        if self.checkpointed_layers is not None and self.checkpointed_layers < 1:
            raise reject("memory.checkpointed_layers", self.checkpointed_layers, "must be 1 or more, or null for all")
        if self.sequence_parallel < 1:
            raise reject("memory.sequence_parallel", self.sequence_parallel, "must be 1 or more")
        if self.budget_gib is not None and not 0 < self.budget_gib < math.inf:
            raise reject("memory.budget_gib", self.budget_gib, "must be more than 0, or null for all that is free")


def _policy(key: str, value: object, known: tuple[str, ...]) -> str:
    """Returns a policy's name; `true` and `false` are truth values to Hydra."""
    name = _TRUTH.get(str(value), str(value))
    if name not in known:
        raise reject(f"memory.{key}", value, f"known: {', '.join(known)}; true is full, false is none")
    return name
