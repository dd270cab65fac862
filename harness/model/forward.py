"""The training forward pass: the stock modules, with the head on supervised positions only.

Shapes: B batch, S tokens, D width, K supervised tokens, V vocabulary.

Stock transformers makes logits for every position; with V near 152,000 they cost more memory than the rest of the
step. Only positions whose next token is supervised enter the head here, which changes neither loss nor gradients.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from harness.data.batch import Batch


def supervised_logits(model: PreTrainedModel, batch: "Batch", always_see: bool = False) -> Tensor:
    """Returns float32 logits of shape (K, V) at the positions that predict a supervised token.

    Args:
        model: The Qwen3-VL itself; adapters that PEFT put inside it take part.
        batch: A batch on the model's device.
        always_see: Run the vision tower for a batch of text too, times zero: where it trains, each rank has to bring
            gradients for every parameter, or the others wait for ever.
    """
    hidden_BSD = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.image_grid_thw,
        use_cache=False,
    ).last_hidden_state
    if always_see and batch.pixel_values is None:
        hidden_BSD = hidden_BSD + 0.0 * _blank_image(model)
    hidden_KD = hidden_BSD.flatten(0, 1).index_select(0, batch.target_index)
    return model.lm_head(hidden_KD).float()


def _blank_image(model: PreTrainedModel) -> Tensor:
    """Returns the sum over the features of one blank image, deepstack levels included (scalar)."""
    visual = model.model.visual
    patch = visual.patch_embed
    merge = visual.spatial_merge_size
    values = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
    device = patch.proj.weight.device
    pixels_PD = torch.zeros(merge**2, values, device=device, dtype=patch.proj.weight.dtype)
    features = visual(pixels_PD, grid_thw=torch.tensor([[1, merge, merge]], device=device))
    return features.pooler_output.sum() + sum(level.sum() for level in features.deepstack_features)


def loss_sum(logits_KV: Tensor, batch: "Batch") -> Tensor:
    """Returns the cross-entropy summed over supervised tokens, weighted where the batch has weights (scalar)."""
    loss_K = F.cross_entropy(logits_KV, batch.targets, reduction="none")
    return loss_K.sum() if batch.loss_weights is None else (loss_K * batch.loss_weights).sum()
