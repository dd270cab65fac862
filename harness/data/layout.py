"""How the samples of a micro-batch share the rows of its batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from harness.data.batch import Batch
from harness.data.collator import collate, collate_packed
from harness.data.config import DataConfig, PaddingSide
from harness.data.share import take_share
from harness.data.template.encoder import Encoder, LoadedSample
from harness.model.vision import vision_index


class Kind(Enum):
    """What becomes a row."""

    padded = "padded"
    """Each sample, padded to the longest."""
    packed = "packed"
    """Each pack."""
    joined = "joined"
    """All samples together, in one row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of training batches."""

    kind: Kind
    length: int | None = None
    """Tokens to which packs are filled; None: as many as the longest has."""
    left: bool = False
    """Pad on the left."""
    shared: tuple[int, int] | None = None
    """Which rank of how many, where ranks share a batch; None: each has its own."""

    def collate(self, units: Sequence[Sequence[LoadedSample]], encoder: Encoder) -> Batch:
        """Makes the batch of some units: packs, or lists of samples."""
        everything = [item for unit in units for item in unit]
        multiple = 1 if self.shared is None else self.shared[1]
        if self.kind is Kind.padded:
            batch = collate(everything, encoder.text, encoder.pad_token_id, self.left, multiple)
        else:
            packs = [everything] if self.kind is Kind.joined else units
            batch = collate_packed(packs, encoder.text, encoder.pad_token_id, self.length, multiple)
        if self.shared is not None:
            batch = take_share(batch, everything, *self.shared, encoder.pixels.merge_size)
        if batch.grid_thw is not None:
            batch.vision = vision_index(batch.grid_thw, encoder.vision_side, encoder.pixels.merge_size)
        return batch


PADDED = Layout(Kind.padded)
"""That of validation."""


def training_layout(config: DataConfig) -> Layout:
    """Returns the layout that the settings ask for."""
    if config.packing:
        return Layout(Kind.packed, config.pack_length() if config.packing_fill else None)
    return (
        Layout(Kind.joined)
        if config.padding_free
        else Layout(Kind.padded, left=config.padding_side is PaddingSide.left)
    )
