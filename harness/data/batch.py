"""What the model is fed: a training batch, and a batch of prompts for generation.

Shapes: B rows, S tokens of a row, C samples and runs of padding, P vision patches, D values a patch, N images and
videos, V visual tokens, K supervised tokens.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness.model.vision import VisionIndex

AnyBatch = TypeVar("AnyBatch", "Batch", "PromptBatch", "Cached", "Share")


@dataclass(slots=True)
class Cached:
    """What the cache of visual features gave to a batch: the tower runs on the rest, and its result is kept.

    H cached visual tokens and M others, V = H + M; L levels (what stands in the place of a token, then those of
    DeepStack), E values.
    """

    features: Tensor | None
    """(H, L, E) in the tower's type, in the order of their tokens; None where nothing was found."""
    order: Tensor | None
    """(V,) int64: where each visual token stands in the M that are computed with the H behind; None without both."""
    missed: list[tuple[str | None, int]]
    """Key and visual tokens of each image and video that is computed; without a key it is not kept."""
    num_hit: int
    """H."""
    num_damaged: int = 0
    """Entries that were found damaged, and deleted."""


@dataclass(slots=True)
class Share:
    """What one of several ranks has of a batch whose tokens and images they share (`harness.data.share`).

    W visual tokens stand in its slice of the tokens.
    """

    rank: int
    """Which of the ranks that share the batch."""
    size: int
    """Their number."""
    rows: int
    """B of the whole batch."""
    positions: Tensor
    """(B, S) int64: text positions of the whole batch, for masks."""
    sees: bool
    """Whether the whole batch has a visual token: then every rank takes part in the exchange of features."""
    sends: list[int]
    """Visual tokens of this rank's images, by the rank in whose slice they stand."""
    receives: list[int]
    """Visual tokens of this rank's slice, by the rank that has their images."""
    order: Tensor
    """(W,) int64: where each visual token of the slice stands in what is received."""
    num_fresh: int
    """Visual tokens that this rank runs the vision tower for."""


@dataclass(slots=True)
class Batch:
    """Samples laid out in rows, padded or packed, with their targets and every index that the forward pass needs."""

    input_ids: Tensor
    """(B, S) int64."""
    attention_mask: Tensor | None
    """(B, S) int64: 1 at tokens, 0 at padding; None in a packed batch, where positions alone separate the samples."""
    position_ids: Tensor
    """(4, B, S) int64: text position, from 0 in each sample, then mRoPE's t, h, w; 0 at padding."""
    cu_seqlens: Tensor
    """(C + 1,) int32: where each sample begins in the flattened (B, S), and B * S; a run of padding counts as one."""
    pixel_values: Tensor | None
    """(P, D) float32, what the vision tower is to run on: images and videos in the order of their tokens, but for those
    in `cached`; None where there is nothing to run it on."""
    grid_thw: Tensor | None
    """(N, 3) int64, in patches, of the images and videos in `pixel_values`."""
    visual_index: Tensor
    """(V,) int64: index into the flattened (B, S) of each visual token, in the order of the vision tower's output."""
    target_index: Tensor
    """(K,) int64: index into the flattened (B, S) of the position that predicts a supervised token."""
    targets: Tensor
    """(K,) int64: the supervised tokens."""
    loss_weights: Tensor | None
    """(K,) float32; None stands for ones."""
    max_seqlen: int
    """Tokens of the longest run between two entries of `cu_seqlens`."""
    num_samples: int
    num_tokens: int
    """Without padding."""
    num_supervised: int
    """K."""
    num_visual: int
    """V: image and video tokens."""
    num_pairs: int = 0
    """Pairs of a token and one that it may see: the sum of L (L + 1) / 2 over samples of L tokens."""
    num_frame_pairs: int = 0
    """The same in the ViT: the sum of P^2 over images and frames of P patches."""
    origins: list[str] = field(default_factory=list)
    """Row of each sample: `file.jsonl:12`."""
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    """Samples left out because their media could not be decoded: origin, reason, detail."""
    vision: "VisionIndex | None" = None
    """What the vision tower has to know of the patches; None where no sample has one."""
    channels: Tensor | None = None
    """(K,) int64: which of `data.channels` each supervised token belongs to, counted from 1, 0 for none of them; None
    where no token belongs to one."""
    cached: Cached | None = None
    """None in a batch of text alone, and where no cache was asked."""
    share: Share | None = None
    """Set where ranks share the batch. Ids, positions and all indices are then those of this rank's slice of the
    flattened tokens, as (1, T / size); pixels and cached features those of its images; the mask, `cu_seqlens` and what
    is counted stay the whole batch's."""
    step_supervised: int = 0
    """Supervised tokens of this rank in the whole optimiser step, all its micro-batches; set by the loader."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Returns a copy on the device."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def stretch(self, first: int, shown_V: Tensor, taught_K: Tensor) -> "Batch":
        """Returns a copy with some of the visual tokens and targets, at places counted from `first`.

        Args:
            first: Of the flattened (B, S).
            shown_V: Which visual tokens stay, bool.
            taught_K: Which targets.
        """
        return dataclasses.replace(
            self,
            visual_index=self.visual_index[shown_V] - first,
            target_index=self.target_index[taught_K] - first,
            targets=self.targets[taught_K],
            loss_weights=None if self.loss_weights is None else self.loss_weights[taught_K],
            channels=None if self.channels is None else self.channels[taught_K],
        )

    def pin_memory(self) -> "Batch":
        """Returns a copy in page-locked memory, from which copies to a GPU do not block."""
        return _map(self, Tensor.pin_memory)


@dataclass(slots=True)
class PromptBatch:
    """Left-padded prompts, in the form that `generate` takes, and the answers expected."""

    input_ids: Tensor
    """(B, S) int64."""
    attention_mask: Tensor
    """(B, S) int64."""
    mm_token_type_ids: Tensor
    """(B, S) int64: 1 at image tokens, 2 at video tokens, else 0; transformers places them in mRoPE by it."""
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    references: list[str]
    """Text of the last assistant turn of each row."""
    prompts: list[str]
    """Rendered prompt of each row, an image as one token."""
    origins: list[str]
    rows: list[int]
    """Index of each row among the validation rows."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PromptBatch":
        """Returns a copy on the device."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PromptBatch":
        """Returns a copy in page-locked memory."""
        return _map(self, Tensor.pin_memory)


def within(index: Tensor, first: int, last: int) -> Tensor:
    """Returns for each index whether it lies from `first` to before `last`."""
    return (index >= first) & (index < last)


def _map(batch: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
    values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    if isinstance(batch, Batch) and batch.vision is not None:
        changed["vision"] = batch.vision.map(change)
    changed |= {name: _map(value, change) for name, value in values.items() if isinstance(value, Cached)}
    changed |= {name: _map(value, change) for name, value in values.items() if isinstance(value, Share)}
    return dataclasses.replace(batch, **changed)
