"""Refuses a run in which a component that should train gets no gradient."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from harness.errors import UserError
from harness.model.component import Component, component_of, names


class GradientCheck:
    """Looks at each trainable component once, at the first optimiser step that can reach it.

    A step of text alone gives the ViT and the aligner zeros, and rightly so: they are looked at in the first step with
    an image.
    """

    def __init__(
        self, model: nn.Module, gradient: Callable[[nn.Parameter], Tensor | None] = lambda parameter: parameter.grad
    ) -> None:
        """Takes note of what trains.

        Args:
            model: With its trainable parameters marked.
            gradient: Returns the whole gradient of a parameter.
        """
        self._model = model
        self._gradient = gradient
        self._names: dict[Component, list[str]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._names.setdefault(component_of(name), []).append(name)

    @property
    def is_done(self) -> bool:
        """Whether every component has been looked at."""
        return not self._names

    def check(self, *, step_has_images: bool, freed: Mapping[nn.Parameter, Tensor] = MappingProxyType({})) -> None:
        """Call after the backward pass, before gradients are cleared.

        Args:
            step_has_images: Whether this step reaches the vision side.
            freed: Norms of gradients that the optimiser has used and cleared already.

        Raises:
            UserError: All gradients of a trainable component are missing or zero.
        """
        ready = [item for item in self._names if item is Component.llm or step_has_images]
        # By name: a strategy may have put shards in the place of the parameters.
        named = dict(self._model.named_parameters()) if ready else {}
        dead = [item for item in ready if not any(self._moves(named[name], freed) for name in self._names.pop(item))]
        if dead:
            raise UserError(
                f"{names(dead)}: marked as trainable, but the first step gave it no gradient, so it would never train. "
                "Look at the freeze policy and tuner.target_modules, and whether the data reaches it."
            )

    def _moves(self, parameter: nn.Parameter, freed: Mapping[nn.Parameter, Tensor]) -> bool:
        gradient = freed[parameter] if parameter in freed else self._gradient(parameter)
        return gradient is not None and bool(gradient.any())


def check_reachable(model: nn.Module, shows_something: bool) -> None:
    """Refuses to train the ViT or the aligner on rows without images, where no step would ever look at them.

    Args:
        model: The model with its trainable parameters marked.
        shows_something: Whether a training row has an image or video.

    Raises:
        UserError: A vision component should train and no row reaches it.
    """
    training = {component_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    blind = sorted(training - {Component.llm}, key=lambda component: component.value)
    if blind and not shows_something:
        raise UserError(
            f"{names(blind)}: should train, but no training row has an image; freeze it, freeze=vit_aligner"
        )
