"""Joins loaded samples into one padded batch.

Shapes: B samples, S tokens of the longest, N images.
"""

from collections.abc import Sequence

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
    samples = [item.sample for item in loaded]
    length = max(len(sample.ids) for sample in samples)
    input_ids_BS = np.full((len(samples), length), pad_token_id, dtype=np.int64)
    mask_BS = np.zeros((len(samples), length), dtype=np.int64)
    positions_4BS = np.zeros((4, len(samples), length), dtype=np.int64)
    predictors, targets = [], []
    for row, item in enumerate(loaded):
        ids = item.sample.ids
        input_ids_BS[row, : len(ids)] = ids
        mask_BS[row, : len(ids)] = 1
        positions_4BS[:, row, : len(ids)] = item.position_ids
        for start, end in item.sample.spans.tolist():
            predictors.append(np.arange(start, end) - 1 + row * length)
            targets.append(ids[start:end])
    return _batch(input_ids_BS, mask_BS, positions_4BS, predictors, targets, loaded)


def _batch(
    input_ids_BS: np.ndarray,
    mask_BS: np.ndarray | None,
    positions_4BS: np.ndarray,
    predictors: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    loaded: Sequence[LoadedSample],
) -> Batch:
    samples = [item.sample for item in loaded]
    pixel_values, image_grid_thw = _images(loaded)
    return Batch(
        input_ids=torch.from_numpy(input_ids_BS),
        attention_mask=None if mask_BS is None else torch.from_numpy(mask_BS),
        position_ids=torch.from_numpy(positions_4BS),
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        target_index=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        loss_weights=None,
        num_samples=len(samples),
        num_tokens=sum(len(sample.ids) for sample in samples),
        num_supervised=sum(sample.num_supervised for sample in samples),
        num_visual=sum(sample.num_visual for sample in samples),
        origins=[sample.origin for sample in samples],
    )


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
    sizes = [sum(len(item.sample.ids) for item in pack) for pack in packs]
    row_length = max(sizes) if length is None else length
    input_ids_BS = np.full((len(packs), row_length), pad_token_id, dtype=np.int64)
    positions_4BS = np.zeros((4, len(packs), row_length), dtype=np.int64)
    predictors, targets = [], []
    for row, pack in enumerate(packs):
        offset = 0
        for item in pack:
            ids = item.sample.ids
            input_ids_BS[row, offset : offset + len(ids)] = ids
            positions_4BS[:, row, offset : offset + len(ids)] = item.position_ids
            for start, end in item.sample.spans.tolist():
                predictors.append(np.arange(start, end) - 1 + offset + row * row_length)
                targets.append(ids[start:end])
            offset += len(ids)
        positions_4BS[0, row, offset:] = np.arange(row_length - offset)
    loaded = [item for pack in packs for item in pack]
    return _batch(input_ids_BS, None, positions_4BS, predictors, targets, loaded)


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
