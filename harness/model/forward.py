"""The training forward pass: stock modules, our own loop over them, and the head on supervised positions only.

Shapes: B rows, S tokens of a row, T = B S, D width, F visual tokens, K supervised tokens, V vocabulary.

Every index comes with the batch. Stock transformers finds places on the device, by masks, counts and split sizes, and
waits for it dozens of times a step; and it makes logits for every position: with V near 152,000 they cost more memory
than the rest of the step. Neither changes the loss or a gradient.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

from harness.model.attention import max_length, takes_cu_seqlens
from harness.model.block import call
from harness.model.features import compute, from_features, look, see
from harness.model.loss import head_loss
from harness.model.ulysses import read_features
from harness.model.vision import VisionIndex, run_tower, vision_index

if TYPE_CHECKING:
    from harness.data.batch import Batch, Share


def supervised_loss(
    model: PreTrainedModel, batch: "Batch", always_see: bool = False, noise_alpha: float = 0.0
) -> Tensor:
    """Returns the first of what `token_losses` does."""
    return token_losses(model, batch, always_see, noise_alpha)[0]


def token_losses(
    model: PreTrainedModel, batch: "Batch", always_see: bool = False, noise_alpha: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy summed over supervised tokens, and that of each token without gradient (K,).

    Both are weighted where the batch has weights.

    Args:
        model: As for `supervised_hidden`, whose other arguments these are too.
        batch: A batch on the model's device.
        always_see: See there.
        noise_alpha: See there.
    """
    hidden_KD = supervised_hidden(model, batch, always_see, noise_alpha)
    return head_loss(hidden_KD, model.lm_head, batch.targets, batch.loss_weights)


def supervised_logits(
    model: PreTrainedModel, batch: "Batch", always_see: bool = False, noise_alpha: float = 0.0
) -> Tensor:
    """Returns float32 logits of shape (K, V) at the positions that predict a supervised token; see above."""
    return model.lm_head(supervised_hidden(model, batch, always_see, noise_alpha)).float()


def supervised_hidden(
    model: PreTrainedModel, batch: "Batch", always_see: bool = False, noise_alpha: float = 0.0
) -> Tensor:
    """Returns what the head sees of shape (K, D), at the positions that predict a supervised token.

    Args:
        model: The Qwen3-VL itself; adapters that PEFT put inside it take part.
        batch: A batch on the model's device.
        always_see: Run the vision tower for a batch of text too: where it trains, each rank has to bring gradients for
            every parameter, and where its weights are split each has to gather them, or the others wait for ever.
        noise_alpha: Strength of NEFTune's noise, see `embedding_noise`; 0 adds none.
    """
    visual, language = model.model.visual, model.model.language_model
    features_FD, levels = _see(visual, batch, getattr(language, "sequence_group", ""))
    if always_see and features_FD is None:
        features_FD, levels = _see_nothing(visual, batch.target_index.device)
    hidden_TD = _decode(language, batch, features_FD, levels, noise_alpha)
    return language.norm(hidden_TD.index_select(0, batch.target_index))


def _see(visual: Any, batch: "Batch", group: str) -> tuple[Tensor | None, list[Tensor]]:
    """Returns what stands in the place of visual tokens, (F, D), and the levels of DeepStack, (F, D) each."""
    if batch.share is not None:
        return _see_shared(visual, batch, batch.share, group)
    if batch.cached is not None:
        return see(visual, batch, batch.cached, _run)
    if batch.pixel_values is None or batch.grid_thw is None:
        return None, []
    return _run(visual, batch.pixel_values, batch.grid_thw, batch.vision)


def _see_shared(visual: Any, batch: "Batch", share: "Share", group: str) -> tuple[Tensor | None, list[Tensor]]:
    """The same of this rank's slice of the tokens, its own images run here and all others where they belong.

    A rank without an image runs a blank one, none of whose features are sent: so it knows their type and shape, and
    where the tower trains brings gradients of zero.
    """
    if not share.sees:
        return None, []
    device = batch.visual_index.device
    cached, is_blank = batch.cached, batch.pixel_values is None
    if cached is not None and cached.features is not None:
        is_blank = False
    if cached is not None:
        stage = visual.feature_cache.stage
        own_VLE = (
            compute(visual, *_blank(visual, device), stage, _run) if is_blank else look(visual, batch, cached, _run)
        )
    else:
        shown = _blank(visual, device) if is_blank else (batch.pixel_values, batch.grid_thw)
        features_FD, levels = _run(visual, *shown, None if is_blank else batch.vision)  # type: ignore[arg-type]
        own_VLE = torch.stack([features_FD, *levels], dim=1)
    features_VLE = read_features(own_VLE[:0] if is_blank else own_VLE, share, group)
    if cached is not None:
        return from_features(visual, features_VLE)
    first_VD, *others = features_VLE.unbind(1)
    return first_VD, others


def _run(
    visual: Any, pixels_PD: Tensor, grid_N3: Tensor, index: VisionIndex | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Runs the tower; without an index, as of a batch that no loader made, this waits for the device to make one."""
    if index is None:
        index = vision_index(grid_N3.cpu(), visual.num_grid_per_side, visual.spatial_merge_size)
        index = index.map(lambda tensor: tensor.to(pixels_PD.device))
    return run_tower(visual, pixels_PD, index)


def _decode(
    language: Any, batch: "Batch", features_FD: Tensor | None, levels: list[Tensor], noise_alpha: float
) -> Tensor:
    """Returns what the last decoder layer makes of text and visual tokens, (T, D).

    Args:
        language: The text model.
        batch: The batch.
        features_FD: What stands in the place of visual tokens.
        levels: (F, D) each: added to the visual tokens behind the first, second, ... layer (DeepStack, 2406.04334).
        noise_alpha: Strength of NEFTune's noise.
    """
    hidden_BSD = language.embed_tokens(batch.input_ids)
    if noise_alpha:
        hidden_BSD = hidden_BSD + embedding_noise(hidden_BSD, batch, noise_alpha)
    if features_FD is not None:
        hidden_TD = hidden_BSD.flatten(0, 1)
        hidden_TD = hidden_TD.index_copy(0, batch.visual_index, features_FD.to(hidden_TD.dtype))
        hidden_BSD = hidden_TD.view_as(hidden_BSD)
    positions_4BS = batch.position_ids
    if takes_cu_seqlens(language.config._attn_implementation):
        hidden_BSD = hidden_BSD.flatten(0, 1).unsqueeze(0)
        positions_4BS = positions_4BS.flatten(1).unsqueeze(1)
    attention = _attention(language, hidden_BSD, batch)
    # Stands on the text model where an adapter has to know more of the batch than a layer is told.
    if (observe := getattr(language, "observe_batch", None)) is not None:
        observe(batch)
    rotation = language.rotary_emb(hidden_BSD, positions_4BS[1:])
    for number, layer in enumerate(language.layers):
        hidden_BSD = call(language, layer, hidden_BSD, position_embeddings=rotation, **attention)
        if number < len(levels):
            added_TD = hidden_BSD.flatten(0, 1).index_add(0, batch.visual_index, levels[number].to(hidden_BSD.dtype))
            hidden_BSD = added_TD.view_as(hidden_BSD)
    return hidden_BSD.flatten(0, 1)


def embedding_noise(hidden_BSD: Tensor, batch: "Batch", alpha: float) -> Tensor:
    """Returns NEFTune's noise (Jain et al., arXiv 2310.05914, algorithm 1): uniform in [-1, 1] x alpha / sqrt(L D).

    L is the length of the token's own sample, not of the row it is packed or padded into. Visual tokens get none: what
    stands in their place is no embedding of a word.

    Args:
        hidden_BSD: Embeddings, for shape, type and device.
        batch: Where samples begin and visual tokens stand.
        alpha: Strength; the paper uses 5, 10 and 15.
    """
    lengths_C, own = batch.cu_seqlens.diff(), batch.input_ids.numel()
    rank, ranks = (0, 1) if batch.share is None else (batch.share.rank, batch.share.size)
    lengths_T = lengths_C.repeat_interleave(lengths_C, output_size=own * ranks)[rank * own : (rank + 1) * own]
    scale_T = alpha / (lengths_T * hidden_BSD.shape[-1]).float().sqrt()
    scale_T = scale_T.index_fill(0, batch.visual_index, 0.0).to(hidden_BSD.dtype)
    noise_BSD = torch.empty_like(hidden_BSD).uniform_(-1, 1)
    return noise_BSD * scale_T.view(*batch.input_ids.shape, 1)


def _attention(language: Any, hidden_BSD: Tensor, batch: "Batch") -> dict[str, Any]:
    """Returns the arguments of a decoder layer that keep samples apart: where they begin, or that and a mask."""
    starts, longest = batch.cu_seqlens, max_length(language, batch.max_seqlen)
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    told: dict[str, Any] = dict(zip(names, (starts, starts, longest, longest), strict=True))
    share = batch.share
    if share is not None:
        told |= {"sequence_group": language.sequence_group, "sequence_size": share.size, "sequence_rows": share.rows}
    if takes_cu_seqlens(language.config._attn_implementation):
        return {**told, "sequence_rows": 1, "attention_mask": None} if share else {**told, "attention_mask": None}
    positions_BS = batch.position_ids[0] if share is None else share.positions
    mask = create_causal_mask(
        config=language.config,
        # For number and length of rows, and type.
        inputs_embeds=hidden_BSD if share is None else hidden_BSD.new_empty(*positions_BS.shape, 1),
        attention_mask=batch.attention_mask,
        past_key_values=None,
        # Without a mask of the padding, transformers takes a new sample to begin where this row does not count on.
        position_ids=positions_BS,
    )
    return {**told, "attention_mask": mask}


def _see_nothing(visual: Any, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Runs the tower on a blank image, and returns none of its features, (0, D), and of each level of DeepStack.

    They take the way of an image's, so that the backward pass has the same steps in the same order on ranks with and
    without images: DeepSpeed adds up gradients in the order in which they come, and what waits for each other there
    is to be the same. No weight is looked at but by the modules that own it: elsewhere it may be in pieces.
    """
    features_FD, levels = _run(visual, *_blank(visual, device))
    return features_FD[:0], [level_FD[:0] for level_FD in levels]


def _blank(visual: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns pixels (P, D), and on the CPU the grid (1, 3), of the smallest image."""
    patch, merge = visual.patch_embed, visual.spatial_merge_size
    values = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
    return torch.zeros(merge**2, values, device=device), torch.tensor([[1, merge, merge]])


def loss_sum(logits_KV: Tensor, batch: "Batch") -> Tensor:
    """Returns the cross-entropy summed over supervised tokens, weighted where the batch has weights (scalar)."""
    loss_K = F.cross_entropy(logits_KV, batch.targets, reduction="none")
    return loss_K.sum() if batch.loss_weights is None else (loss_K * batch.loss_weights).sum()
