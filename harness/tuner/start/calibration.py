"""What the base model shows on training samples: second moments of its layers' inputs, gradients of their weights.

Shapes: T tokens or patches, D inputs and E outputs of a layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.outlook import Outlook


@dataclass(slots=True)
class Moments:
    """Sums over all inputs of a layer, in float32 on the device; layers fed the same tensor share one object."""

    count: int
    sum_D: Tensor
    square_DD: Tensor
    """Sum of x x^T."""

    def add(self, other: "Moments") -> None:
        """Adds those of another batch, in place."""
        self.count += other.count
        self.sum_D += other.sum_D
        self.square_DD += other.square_DD


def input_moments(
    base: PreTrainedModel, names: Sequence[str], outlook: Outlook, batches: tuple[int, int, int | None]
) -> dict[str, Moments]:
    """Returns the moments of the layers' inputs over training samples, padding left out.

    Args:
        base: The base model; it comes back unchanged, to the device that it was on.
        names: Linear layers.
        outlook: For the samples and the device.
        batches: Number of batches, samples of each, and their longest length.

    Raises:
        UserError: No sample reached one of the layers.
    """
    watch = _Watch()
    handles = [base.get_submodule(name).register_forward_pre_hook(watch.hook(name)) for name in names]
    try:
        with _on_device(base, outlook), torch.no_grad():
            for batch in outlook.batches(*batches):
                moved = batch.to(outlook.device)
                mask = moved.attention_mask
                watch.tokens = None if mask is None else mask.flatten().bool()
                supervised_logits(base, moved)
    finally:
        for handle in handles:
            handle.remove()
    _check_reached(names, watch.moments)
    return watch.moments


def mean_gradients(
    base: PreTrainedModel, names: Sequence[str], outlook: Outlook, batches: tuple[int, int, int | None]
) -> dict[str, Tensor]:
    """Returns the gradient of the mean loss for each layer's weight, (E, D) float32 on the CPU.

    A weight's gradient leaves the device as soon as it is there, so that one at a time takes memory.

    Args and Raises: as for `input_moments`.
    """
    weights: dict[str, Any] = {name: base.get_submodule(name).weight for name in names}
    sums: dict[str, Tensor] = {}
    handles = []
    num_batches = 0
    try:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(_collector(name, sums)))
        with _on_device(base, outlook), torch.enable_grad():
            for batch in outlook.batches(*batches):
                moved = batch.to(outlook.device)
                (loss_sum(supervised_logits(base, moved), moved) / max(batch.num_supervised, 1)).backward()
                num_batches += 1
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
    _check_reached(names, sums)
    return {name: total / num_batches for name, total in sums.items()}


class _Watch:
    """Takes the inputs of layers; q, k and v get one tensor, which is multiplied out once."""

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self.tokens: Tensor | None = None
        """(T,) bool: where text rows hold no padding."""
        self._last: tuple[Tensor | None, str] = (None, "")

    def hook(self, name: str) -> Any:
        of_text = component_of(name) is Component.llm

        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen, owner = self._last
            if args[0] is seen:
                self.moments[name] = self.moments[owner]
                return
            self._last = args[0], name
            x_TD = args[0].flatten(0, -2)
            if of_text and self.tokens is not None:
                x_TD = x_TD[self.tokens]
            x_TD = x_TD.float()
            moments = Moments(len(x_TD), x_TD.sum(0), x_TD.T @ x_TD)
            if name in self.moments:
                self.moments[name].add(moments)
            else:
                self.moments[name] = moments

        return see


def _collector(name: str, sums: dict[str, Tensor]) -> Any:
    def collect(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient_ED = weight.grad.to("cpu", torch.float32)
        sums[name] = sums[name] + gradient_ED if name in sums else gradient_ED
        weight.grad = None

    return collect


@contextmanager
def _on_device(base: PreTrainedModel, outlook: Outlook) -> Iterator[None]:
    training, before = base.training, base.device
    base.eval()
    base.to(outlook.device)  # type: ignore[arg-type]
    try:
        yield
    finally:
        base.to(before)  # type: ignore[arg-type]
        base.train(training)


def _check_reached(names: Sequence[str], found: dict[str, Any]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"tuner.init: the samples it starts from reach {len(missing)} of the layers not at all, {missing[0]} among "
            "them; take them out of tuner.target_modules, freeze their component, or give rows that reach them"
        )
