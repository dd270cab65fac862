"""Losses of the channels that `data.channels` names, told apart where each token's loss is at hand.

The loss of a channel is its tokens' summed loss divided by their number, over all micro-batches and ranks of a step: of
a channel alone, what `train/loss` is of all. Everything stays on the device until the log is written.

Shapes: K supervised tokens, C channels.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from harness.data.batch import Batch


class ChannelLoss:
    """Adds up losses and tokens of each channel, on this rank."""

    def __init__(self, names: Sequence[str]) -> None:
        """Args: the channels, in the order of `Batch.channels`, which counts them from 1."""
        self.names = names
        self._sums: list[Tensor] = []

    def add(self, loss_K: Tensor, batch: Batch) -> None:
        """Takes a micro-batch in.

        Args:
            loss_K: Loss of each supervised token, without gradient.
            batch: The micro-batch, on the same device.
        """
        if batch.channels is None or not self.names:
            return
        numbers_C1 = torch.arange(1, len(self.names) + 1, device=loss_K.device).unsqueeze(1)
        belongs_CK = batch.channels == numbers_C1
        # Not index_add, which adds in another order each time.
        self._sums.append(torch.stack(((belongs_CK * loss_K).sum(1), belongs_CK.sum(1).to(loss_K.dtype))))

    def clear(self) -> None:
        """Forgets what was added since the last call of `take`."""
        self._sums.clear()

    def take(self, device: torch.device) -> Tensor:
        """Returns (2 C,) losses, then tokens, of each channel since the last call, still on the device."""
        sums, self._sums = self._sums, []
        total = torch.stack(sums).sum(0) if sums else torch.zeros(2, len(self.names), device=device)
        return total.flatten()


def channel_metrics(prefix: str, names: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    """Returns `<prefix>/<channel>` of each channel that had a supervised token.

    Args:
        prefix: `train/loss` or `val/loss`.
        names: The channels.
        values: What `ChannelLoss.take` returned, summed over ranks.
    """
    numbers = list(values)
    losses, tokens = numbers[: len(names)], numbers[len(names) :]
    pairs = zip(names, losses, tokens, strict=True)
    return {f"{prefix}/{name}": loss / count for name, loss, count in pairs if count}
