"""Joins loaded samples into one padded batch.

Shapes: B samples, S tokens of the longest, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.data.batch import Batch, PromptBatch
from harness.data.encoding import LoadedSample, PromptSample


def collate(loaded: Sequence[LoadedSample], pad_token_id: int) -> Batch:
    """Pads on the right and lists the positions that predict a supervised token.

    Args:
        loaded: At least one sample.
        pad_token_id: Fills `input_ids` behind a sample; the mask hides it.
    """
    rows = _lay_out([[item] for item in loaded], pad_token_id, max(len(item.sample.ids) for item in loaded))
    mask_BS = np.zeros_like(rows.input_ids_BS)
    for row, used in enumerate(rows.used):
        mask_BS[row, :used] = 1
    return _batch(rows, mask_BS, loaded)


def collate_packed(packs: Sequence[Sequence[LoadedSample]], pad_token_id: int, length: int | None) -> Batch:
    """Puts the samples of each pack behind one another in a row, without a mask.

    The text row of the position ids begins at 0 in each sample: from that, transformers keeps samples apart in every
    attention backend. With the three mRoPE rows alone it would not, and samples would see each other. Filling at the
    end of a row counts as a sample of its own.

    Args:
        packs: At least one pack of at least one sample; each becomes a row.
        pad_token_id: Fills rows.
        length: Tokens of a row; None: as many as the longest pack has.
    """
    longest = max(sum(len(item.sample.ids) for item in pack) for pack in packs)
    rows = _lay_out(packs, pad_token_id, longest if length is None else length)
    for row, used in enumerate(rows.used):
        rows.positions_4BS[0, row, used:] = np.arange(rows.input_ids_BS.shape[1] - used)
    return _batch(rows, None, [item for pack in packs for item in pack])


def collate_prompts(
    prompts: Sequence[PromptSample],
    loaded: Sequence[LoadedSample],
    rows: Sequence[int],
    *,
    pad_token_id: int,
    image_token_id: int,
) -> PromptBatch:
    """Pads prompts on the left, so that each answer begins at the same position.

    Args:
        prompts: At least one prompt.
        loaded: The prompts' samples, loaded, in the same order.
        rows: Index of each among the validation rows.
        pad_token_id: Fills `input_ids` before a prompt.
        image_token_id: Marks the image tokens.
    """
    length = max(len(prompt.sample.ids) for prompt in prompts)
    input_ids_BS = np.full((len(prompts), length), pad_token_id, dtype=np.int64)
    mask_BS = np.zeros((len(prompts), length), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids_BS[row, length - len(prompt.sample.ids) :] = prompt.sample.ids
        mask_BS[row, length - len(prompt.sample.ids) :] = 1
    pixel_values, image_grid_thw = _images(loaded)
    return PromptBatch(
        input_ids=torch.from_numpy(input_ids_BS),
        attention_mask=torch.from_numpy(mask_BS),
        mm_token_type_ids=torch.from_numpy((input_ids_BS == image_token_id).astype(np.int64)),
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        references=[prompt.reference for prompt in prompts],
        prompts=[prompt.text for prompt in prompts],
        origins=[prompt.sample.origin for prompt in prompts],
        rows=list(rows),
    )


def _images(loaded: Sequence[LoadedSample]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    pixels = [item.pixel_values for item in loaded if item.pixel_values is not None]
    if not pixels:
        return None, None
    grids_N3 = np.concatenate([item.sample.grids for item in loaded]).astype(np.int64)
    return torch.cat(pixels), torch.from_numpy(grids_N3)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Samples laid out in rows of equal length; unused places hold padding, at position 0."""

    input_ids_BS: np.ndarray
    positions_4BS: np.ndarray
    predictors: list[np.ndarray]
    """Flat indices of the positions that predict each supervised run."""
    targets: list[np.ndarray]
    used: list[int]
    """Tokens of each row that are no padding."""


def _lay_out(packs: Sequence[Sequence[LoadedSample]], pad_token_id: int, length: int) -> _Rows:
    ids_BS = np.full((len(packs), length), pad_token_id, dtype=np.int64)
    rows = _Rows(ids_BS, np.zeros((4, *ids_BS.shape), dtype=np.int64), predictors=[], targets=[], used=[])
    for row, pack in enumerate(packs):
        offset = 0
        for item in pack:
            ids = item.sample.ids
            rows.input_ids_BS[row, offset : offset + len(ids)] = ids
            rows.positions_4BS[:, row, offset : offset + len(ids)] = item.position_ids
            for start, end in item.sample.spans.tolist():
                rows.predictors.append(np.arange(start, end) - 1 + offset + row * length)
                rows.targets.append(ids[start:end])
            offset += len(ids)
        rows.used.append(offset)
    return rows


def _batch(rows: _Rows, mask_BS: np.ndarray | None, loaded: Sequence[LoadedSample]) -> Batch:
    samples = [item.sample for item in loaded]
    pixel_values, image_grid_thw = _images(loaded)
    return Batch(
        input_ids=torch.from_numpy(rows.input_ids_BS),
        attention_mask=None if mask_BS is None else torch.from_numpy(mask_BS),
        position_ids=torch.from_numpy(rows.positions_4BS),
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        target_index=torch.from_numpy(np.concatenate(rows.predictors)),
        targets=torch.from_numpy(np.concatenate(rows.targets).astype(np.int64)),
        loss_weights=None,
        num_samples=len(samples),
        num_tokens=sum(len(sample.ids) for sample in samples),
        num_supervised=sum(sample.num_supervised for sample in samples),
        num_visual=sum(sample.num_visual for sample in samples),
        origins=[sample.origin for sample in samples],
    )
