"""What optimisers that project gradients share: which matrices, to which rank and how often."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.optim.adam import AdamConfig
from harness.optim.footprint import Footprint, Trained

if TYPE_CHECKING:
    from torch import nn


@dataclass(kw_only=True, slots=True)
class ProjectedConfig(AdamConfig):
    """Shared fields; a method extends it by fields only. Defaults are those of ms-swift 4.6."""

    full_only: ClassVar[bool] = True
    target_modules: list[str] | None = None
    """Parts of the names of modules whose weight matrices are projected. null: attn and mlp, in whatever trains."""
    with_embedding: bool = False
    """Project the token embedding and the head too."""
    rank: int = 128
    """Rank of the projection; at most the smallest side of a target. More is more memory, and closer to AdamW."""
    update_proj_gap: int = 50
    """Optimiser steps between two projections of a matrix."""
    scale: float = 1.0
    """Factor on the update of a target, beside the learning rate."""
    per_parameter: bool = False
    """Update each target within the backward pass and free its gradient at once: saves the memory of the gradients.
    Needs max_grad_norm=null, trainer.accumulate=1 and one device."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        AdamConfig.__post_init__(self)
        if self.target_modules is not None and not all(self.target_modules or [""]):
            raise reject("optim.target_modules", self.target_modules, "name modules, or null for attn and mlp")
        for key in ("rank", "update_proj_gap"):
            if getattr(self, key) < 1:
                raise reject(f"optim.{key}", getattr(self, key), "must be 1 or more")
        if not 0 < self.scale < math.inf:
            raise reject("optim.scale", self.scale, "must be above 0")
        if self.per_parameter and self.max_grad_norm:
            raise reject(
                "optim.max_grad_norm",
                self.max_grad_norm,
                "the global norm is known only after the backward pass, in which optim.per_parameter already updates; "
                "set optim.max_grad_norm=null",
            )

    def footprint(self, trained: Trained) -> Footprint:
        """Returns what gradients and state will take; per parameter, the largest target alone has a gradient.

        Raises:
            UserError: As for `choose_targets`.
        """
        from harness.optim.projected_target import choose_targets

        targets = choose_targets([{"params": list(trained)}], self)
        others = AdamConfig.footprint(self, [(name, p) for name, p in trained if p not in targets])
        gradients = [target.nbytes for target in targets]
        held = max(gradients) if self.per_parameter else sum(gradients)
        return Footprint(others.gradients + held, others.state + sum(map(self.target_state, targets)))

    def target_state(self, target: "nn.Parameter") -> float:
        """Returns the bytes of a target's state: Adam's moments in float32 on the side that is projected."""
        return 8 * self.rank * target.numel() // min(target.shape[-2:])
