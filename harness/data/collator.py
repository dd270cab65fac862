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
    pixel_values, image_grid_thw = _images(loaded)
    return Batch(
        input_ids=torch.from_numpy(input_ids_BS),
        attention_mask=torch.from_numpy(mask_BS),
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
