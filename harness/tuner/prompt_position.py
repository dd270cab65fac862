"""Which tokens are the first and the last of their prompt, told to every decoder layer of a forward pass.

The layers get it inside `position_embeddings`, so that a layer recomputed under checkpointing sees what it saw at
first, whatever passed through the model in between.

Shapes: B rows, S tokens of a row, T = B S, C samples and runs of padding, K supervised tokens.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.data.batch import Batch


class Rotation(tuple):
    """(cos, sin) as decoder layers take it, and which tokens of the pass are edited."""

    edited: Tensor
    """(B, S) or (T,) bool."""


class PromptPositions:
    """Finds the first `prefix` and the last `suffix` tokens of each prompt, in training and in generation."""

    def __init__(self, prefix: int, suffix: int) -> None:
        """Args: number of tokens at either end of a prompt; both count where a prompt is shorter than their sum."""
        self.prefix = prefix
        self.suffix = suffix
        self._edited: Tensor | None = None

    def follow(self, language: nn.Module) -> None:
        """Looks at every forward pass of a text model from here on, ours and the stock one."""
        language.observe_batch = self.of_batch  # type: ignore[assignment]
        language.register_forward_pre_hook(self.of_call, with_kwargs=True)
        language.get_submodule("rotary_emb").register_forward_hook(self._hand_over)

    def of_batch(self, batch: "Batch") -> None:
        """Goes by the samples of a batch; a prompt ends at the token that predicts the first supervised one."""
        starts_C, ends_C = batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long()
        total = batch.input_ids.numel()
        samples_C = torch.arange(starts_C.numel(), device=starts_C.device)
        sample_T = samples_C.repeat_interleave(ends_C - starts_C, output_size=total)
        last_C = (ends_C - 1).scatter_reduce(0, sample_T[batch.target_index], batch.target_index, "amin")
        place_T = torch.arange(total, device=starts_C.device)
        first_T, last_T = starts_C[sample_T], last_C[sample_T]
        near = (place_T < first_T + self.prefix) | (place_T > last_T - self.suffix)
        self._edited = near & (place_T <= last_T)

    def of_call(self, language: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Takes what comes without a past as prompts, each whole and in a row of its own; edits nothing behind them.

        Args:
            language: The text model.
            args: None of note.
            kwargs: Of its stock forward pass; a mask is of shape (B, S) with zeros at padding, on either side.

        Raises:
            UserError: The mask does not tell padding from prompt, as those of static caches.
        """
        given = kwargs.get("inputs_embeds")
        given = kwargs["input_ids"] if given is None else given
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length():
            self._edited = torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
            return
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(given.shape[:2], device=given.device)
        elif not isinstance(mask, Tensor) or mask.shape != given.shape[:2]:
            raise UserError(
                "tuner.prefix, tuner.suffix: need a mask of shape (rows, tokens); use generate's default cache"
            )
        mask_BS = mask.bool()
        number_BS = mask_BS.cumsum(1)
        near = (number_BS <= self.prefix) | (number_BS > number_BS[:, -1:] - self.suffix)
        self._edited = near & mask_BS

    def _hand_over(self, rotary: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Rotation:
        assert self._edited is not None
        rotation = Rotation(output)
        rotation.edited, self._edited = self._edited, None
        return rotation
