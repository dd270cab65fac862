"""Lays loaded samples out in the rows of a batch, with every index that the forward pass needs.

Shapes: B rows, S tokens of a row, N images and videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.data.batch import Batch, Cached, PromptBatch
from harness.data.features.lookup import Found
from harness.data.media.video import VideoRef
from harness.data.template.encoder import LoadedSample, PromptSample
from harness.data.template.text import TextEncoder


def collate(
    loaded: Sequence[LoadedSample], text: TextEncoder, pad_token_id: int, left: bool = False, multiple: int = 1
) -> Batch:
    """Pads each sample to the longest.

    Args:
        loaded: Samples; none makes a batch of one padding token, which teaches nothing.
        text: Knows the visual tokens.
        pad_token_id: Fills `input_ids` beside a sample; the mask hides it.
        left: Pad on the left.
        multiple: Of which rows' tokens are to be a multiple.
    """
    longest = _up(max((len(item.sample.ids) for item in loaded), default=1), multiple)
    rows = _lay_out([[item] for item in loaded] or [[]], text, pad_token_id, longest, left)
    mask_BS = np.zeros_like(rows.input_ids_BS)
    for row, (start, end) in enumerate(rows.used):
        mask_BS[row, start:end] = 1
    return _batch(rows, mask_BS, loaded)


def collate_packed(
    packs: Sequence[Sequence[LoadedSample]],
    text: TextEncoder,
    pad_token_id: int,
    length: int | None,
    multiple: int = 1,
) -> Batch:
    """Puts the samples of each pack behind one another in a row, without a mask.

    The text row of the position ids begins at 0 in each sample: from that, transformers keeps samples apart in every
    attention backend. With the three mRoPE rows alone it would not, and samples would see each other. Filling at the
    end of a row counts as a sample of its own.

    Args:
        packs: At least one pack; each becomes a row.
        text: Knows the visual tokens.
        pad_token_id: Fills rows.
        length: Tokens of a row; None: as many as the longest pack has.
        multiple: To a multiple of which the number of tokens is rounded up.
    """
    longest = max(1, *(sum(len(item.sample.ids) for item in pack) for pack in packs))
    rows = _lay_out(packs, text, pad_token_id, _up(longest if length is None else length, multiple), left=False)
    for row, (_, end) in enumerate(rows.used):
        rows.positions_4BS[0, row, end:] = np.arange(rows.input_ids_BS.shape[1] - end)
    return _batch(rows, None, [item for pack in packs for item in pack])


def collate_prompts(
    prompts: Sequence[PromptSample],
    loaded: Sequence[LoadedSample],
    rows: Sequence[int],
    *,
    text: TextEncoder,
    pad_token_id: int,
) -> PromptBatch:
    """Pads prompts on the left, so that each answer begins at the same position.

    Args:
        prompts: At least one prompt.
        loaded: The prompts' samples, loaded, in the same order.
        rows: Index of each among the validation rows.
        text: Knows the visual tokens.
        pad_token_id: Fills `input_ids` before a prompt.
    """
    length = max(len(prompt.sample.ids) for prompt in prompts)
    input_ids_BS = np.full((len(prompts), length), pad_token_id, dtype=np.int64)
    mask_BS = np.zeros((len(prompts), length), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids_BS[row, length - len(prompt.sample.ids) :] = prompt.sample.ids
        mask_BS[row, length - len(prompt.sample.ids) :] = 1
    kinds_BS = (input_ids_BS == text.image_token_id) + 2 * (input_ids_BS == text.video_token_id)
    pixel_values, image_grid_thw = _by_kind(loaded, videos=False)
    pixel_values_videos, video_grid_thw = _by_kind(loaded, videos=True)
    return PromptBatch(
        input_ids=torch.from_numpy(input_ids_BS),
        attention_mask=torch.from_numpy(mask_BS),
        mm_token_type_ids=torch.from_numpy(kinds_BS.astype(np.int64)),
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        pixel_values_videos=pixel_values_videos,
        video_grid_thw=video_grid_thw,
        references=[prompt.reference for prompt in prompts],
        prompts=[prompt.text for prompt in prompts],
        origins=[prompt.sample.origin for prompt in prompts],
        rows=list(rows),
    )


def _by_kind(loaded: Sequence[LoadedSample], videos: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns pixels and grids of the images, or of the videos, of all samples: `generate` takes them apart."""
    pixels, grids = [], []
    for item in loaded:
        if item.pixel_values is None:
            continue
        sizes = item.sample.grids.prod(axis=1).tolist()
        for ref, grid, part in zip(item.sample.media, item.sample.grids, item.pixel_values.split(sizes), strict=True):
            if isinstance(ref, VideoRef) == videos:
                pixels.append(part)
                grids.append(grid.astype(np.int64))
    return (torch.cat(pixels), torch.from_numpy(np.stack(grids))) if pixels else (None, None)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Samples laid out in rows of equal length; unused places hold padding, at position 0."""

    input_ids_BS: np.ndarray
    positions_4BS: np.ndarray
    predictors: list[np.ndarray] = field(default_factory=list)
    """Flat indices of the positions that predict each supervised run."""
    targets: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    channels: list[np.ndarray] = field(default_factory=list)
    visual: list[np.ndarray] = field(default_factory=list)
    """Flat indices of each sample's visual tokens."""
    starts: list[int] = field(default_factory=list)
    """Flat index at which each sample, and each run of padding, begins."""
    used: list[tuple[int, int]] = field(default_factory=list)
    """Range of each row that is no padding."""


def _lay_out(
    packs: Sequence[Sequence[LoadedSample]], text: TextEncoder, pad_token_id: int, length: int, left: bool
) -> _Rows:
    ids_BS = np.full((len(packs), length), pad_token_id, dtype=np.int64)
    rows = _Rows(ids_BS, np.zeros((4, *ids_BS.shape), dtype=np.int64))
    for row, pack in enumerate(packs):
        total = sum(len(item.sample.ids) for item in pack)
        first = offset = length - total if left else 0
        if first:
            rows.starts.append(row * length)
        for item in pack:
            sample = item.sample
            end = offset + len(sample.ids)
            flat = row * length + offset
            rows.input_ids_BS[row, offset:end] = sample.ids
            rows.positions_4BS[:, row, offset:end] = item.position_ids
            rows.starts.append(flat)
            if sample.num_visual:
                rows.visual.append(np.flatnonzero(text.is_visual(sample.ids)) + flat)
            for (begin, stop), weight in zip(sample.spans.tolist(), sample.weights.tolist(), strict=True):
                rows.predictors.append(np.arange(begin, stop) - 1 + flat)
                rows.targets.append(sample.ids[begin:stop])
                rows.weights.append(np.full(stop - begin, weight, dtype=np.float32))
                rows.channels.append(np.full(stop - begin, sample.channel, dtype=np.int64))
            offset = end
        if offset < length:
            rows.starts.append(row * length + offset)
        rows.used.append((first, offset))
    return rows


def _batch(rows: _Rows, mask_BS: np.ndarray | None, loaded: Sequence[LoadedSample]) -> Batch:
    samples = [item.sample for item in loaded]
    pixels = [item.pixel_values for item in loaded if item.pixel_values is not None]
    grids_N3 = [grids for item in loaded if len(grids := _to_run(item))]
    weights_K = _joined(rows.weights, np.float32)
    channels_K = _joined(rows.channels, np.int64)
    cu_seqlens = np.array([*rows.starts, rows.input_ids_BS.size], dtype=np.int32)
    return Batch(
        input_ids=torch.from_numpy(rows.input_ids_BS),
        attention_mask=None if mask_BS is None else torch.from_numpy(mask_BS),
        position_ids=torch.from_numpy(rows.positions_4BS),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        pixel_values=torch.cat(pixels) if pixels else None,
        grid_thw=torch.from_numpy(np.concatenate(grids_N3).astype(np.int64)) if grids_N3 else None,
        visual_index=torch.from_numpy(_joined(rows.visual, np.int64)),
        target_index=torch.from_numpy(_joined(rows.predictors, np.int64)),
        targets=torch.from_numpy(_joined(rows.targets, np.int64)),
        loss_weights=None if (weights_K == 1).all() else torch.from_numpy(weights_K),
        max_seqlen=int(np.diff(cu_seqlens).max()),
        num_samples=len(samples),
        num_tokens=sum(len(sample.ids) for sample in samples),
        num_supervised=sum(sample.num_supervised for sample in samples),
        num_visual=sum(sample.num_visual for sample in samples),
        num_pairs=sum(len(sample.ids) * (len(sample.ids) + 1) // 2 for sample in samples),
        num_frame_pairs=sum(int(t) * int(h * w) ** 2 for item in loaded for t, h, w in _to_run(item)),
        origins=[sample.origin for sample in samples],
        channels=torch.from_numpy(channels_K) if channels_K.any() else None,
        cached=_cached(loaded),
    )


def _to_run(item: LoadedSample) -> np.ndarray:
    """Returns the grids of a sample's images and videos whose features are not cached, (N, 3)."""
    if item.found is None:
        return item.sample.grids
    return item.sample.grids[[found.features is None for found in item.found]]


def _cached(loaded: Sequence[LoadedSample]) -> Cached | None:
    """Joins what the cache has; None where it was not asked, or there is nothing to see."""
    found = [one for item in loaded for one in item.found or ()]
    return join_found(found) if found else None


def join_found(found: Sequence[Found]) -> Cached:
    """Joins what the cache has of some images and videos, in the order of their tokens."""
    hits, tokens = [one.features is not None for one in found], [one.tokens for one in found]
    hit_V = np.repeat(np.array(hits, dtype=bool), np.array(tokens, dtype=np.int64))
    num_hit = int(hit_V.sum())
    order_V = np.where(hit_V, len(hit_V) - num_hit + np.cumsum(hit_V) - 1, np.cumsum(~hit_V) - 1)
    parts = [one.features for one in found if one.features is not None]
    return Cached(
        features=torch.cat(parts) if parts else None,
        order=torch.from_numpy(order_V) if 0 < num_hit < len(hit_V) else None,
        missed=[(one.key, one.tokens) for one in found if one.features is None],
        num_hit=num_hit,
        num_damaged=sum(one.damaged for one in found),
    )


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)
