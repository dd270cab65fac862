"""What is done about steps that run out of memory: micro-batches are cut by rows, then all layers are checkpointed."""

from dataclasses import dataclass
from typing import Any

from harness.data.batch import Batch
from harness.memory.checkpointing import checkpoint_all


@dataclass(slots=True)
class Relief:
    """Measures in force, from the step that needed them to the end of the run; part of a checkpoint."""

    parts: int = 1
    """Into how many parts a large micro-batch is cut."""
    tokens: int = 0
    """Padding included: a micro-batch of fewer fitted so far."""
    visual: int = 0
    """Visual tokens: likewise."""
    checkpoints_all: bool = False
    """Whether each layer is computed again in the backward pass, whatever memory.checkpointing says."""

    def parts_of(self, batch: Batch) -> int:
        """Returns into how many parts a micro-batch is to be cut: 1 where it is smaller than what was too large."""
        if self.parts == 1 or batch.input_ids.numel() < self.tokens or batch.num_visual < self.visual:
            return 1
        return min(self.parts, batch.input_ids.shape[0])

    def increase(self, batch: Batch, base: Any) -> str | None:
        """Takes the next measure against a micro-batch that was too large.

        Args:
            batch: The micro-batch, whole.
            base: The Qwen3-VL, whose layers may be changed.

        Returns:
            What was done, for the log; None where nothing is left.
        """
        rows, tokens, parts = batch.input_ids.shape[0], batch.input_ids.numel(), self.parts_of(batch)
        if parts < rows:
            # Where others were cut before, the smaller of the two decides from now on.
            self.tokens = min(self.tokens, tokens) if self.parts > 1 else tokens
            self.visual = min(self.visual, batch.num_visual) if self.parts > 1 else batch.num_visual
            self.parts = min(2 * parts, rows)
            return f"micro-batches of {self.tokens:,} tokens or more are cut into {self.parts}"
        if self.apply(base):
            return "all layers are checkpointed (memory.checkpointing=full)"
        return None

    def apply(self, base: Any) -> bool:
        """Checkpoints all layers; returns whether one kept more before."""
        self.checkpoints_all = True
        return checkpoint_all(base)
