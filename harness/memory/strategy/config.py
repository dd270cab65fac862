"""What every strategy says of itself; rules across groups ask for it."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """Shared properties; a strategy extends it by fields only."""

    sharded: ClassVar[bool] = False
    """Whether weights are split over the processes, frozen ones too: a module then runs on all of them or on none."""
    splits_updates: ClassVar[bool] = False
    """Whether an optimiser sees parts of matrices, and nobody whole gradients."""
    flattens: ClassVar[bool] = False
    """Whether the weights that an optimiser updates are copies of those that the model runs with."""
    scales_fp16: ClassVar[bool] = True
    """Whether the gradient scaler of fp16 works on what there is of the gradients."""
    reshards: ClassVar[bool] = True
    """Whether a run can go on from its checkpoints with another number of processes."""
    saves_parts: ClassVar[bool] = False
    """Whether each process writes its part of a checkpoint, into a folder; else the first one writes a file."""
