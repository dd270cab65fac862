"""What every strategy says of itself; rules across groups ask for it."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

SMALL = 1 / 16
"""Share of the model's bytes up to which what trains is kept whole where a strategy may choose."""


class Bytes(NamedTuple):
    """What a model takes on one GPU, or would if nothing were split."""

    weights: float
    gradients: float
    state: float
    """Of the optimiser."""


class Model(NamedTuple):
    """What a strategy's share of a model depends on."""

    whole: Bytes
    trained_values: int
    trained_bytes: float
    """Bytes of the weights that train."""
    largest_layer: float
    """Bytes of a decoder layer's weights."""
    outside: float
    """And of all that is in no layer."""


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """Shared properties; a strategy extends it by fields only."""

    sharded: ClassVar[bool] = False
    """Whether weights are split over the processes, frozen ones too: a module then runs on all of them or on none,
    and a layer is whole from before its forward pass to behind it."""
    keeps_frozen_vit: ClassVar[bool] = False
    """Whether of split weights those of a frozen ViT are whole on every process, which then runs it on its own."""
    flattens: ClassVar[bool] = False
    """Whether the weights that an optimiser updates are copies of those that the model runs with, one behind the other
    and a part of them on each process."""
    unsplit: ClassVar[str] = "memory/strategy=ddp"
    """What to set for whole updates where `splits_updates`."""
    scales_fp16: ClassVar[bool] = True
    """Whether the gradient scaler of fp16 works on what there is of the gradients."""
    shares_sequences: ClassVar[bool] = False
    """Whether processes may share a micro-batch (memory.sequence_parallel): gradients are then sums over all of them,
    and each runs the same layers."""
    reshards: ClassVar[bool] = True
    """Whether a run can go on from its checkpoints with another number of processes."""
    saves_parts: ClassVar[bool] = False
    """Whether each process writes its part of a checkpoint, into a folder; else the first one writes a file."""

    @property
    def splits_updates(self) -> bool:
        """Says whether an optimiser sees parts of matrices, and nobody whole gradients."""
        return self.flattens

    def backend(self, chosen: str, processes: int, nodes: int) -> str:
        """Returns the backends of the processes' group; called before there is one, or a communicator.

        Args:
            chosen: The run's.
            processes: Of the run.
            nodes: On which they are.

        Raises:
            UserError: A setting can not take effect with them.
        """
        return chosen

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what each process has on its GPU: all of it, and gradients twice, in DDP's buckets too."""
        whole = model.whole
        return whole._replace(gradients=whole.gradients * (2 if processes > 1 else 1))
