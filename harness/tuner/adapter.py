"""Adapter (Houlsby et al., arXiv 1902.00751): x + W_up f(W_down x + b_down) + b_up behind a frozen sub-layer.

x is what the sub-layer gives to the residual stream. As in the paper a decoder layer has two, behind the projection of
the attention and behind the MLP; so has a ViT block, and a merger, which is an MLP, has one. W_down starts from a
normal of deviation 0.01, cut off at two deviations.

Deviations: W_up starts at zero and not near it, so that the model starts unchanged; the layer norms, which the paper
trains as well, stay frozen unless `tuner.modules_to_save=[input_layernorm,post_attention_layernorm]` names them.
ms-swift inserts behind the MLP alone: `tuner.places=[mlp]`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.activation import Activation
from harness.tuner.inserted import InsertedConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned

DEFAULT_LR = 1e-4
"""Default learning rate of adapters in ms-swift 4.6."""


class Place(Enum):
    """A sub-layer that a bottleneck stands behind."""

    attention = "attention"
    mlp = "mlp"


@dataclass(kw_only=True, slots=True)
class AdapterConfig(InsertedConfig):
    """Defaults: the spec's length and activation, the paper's places."""

    size: ClassVar[str] = "length"
    name: str = "adapter"
    length: int = 128
    """Width m of the bottleneck; 2 m d + d + m weights behind each sub-layer of width d."""
    activation: Activation = Activation.gelu
    """Function between the projections; linear makes the bottleneck a low-rank product."""
    places: list[Place] = field(default_factory=lambda: [Place.attention, Place.mlp])
    """Sub-layers that get one: attention, mlp. Mergers have an mlp only."""

    def __post_init__(self) -> None:
        InsertedConfig.__post_init__(self)
        if self.length < 1:
            raise reject("tuner.length", self.length, "must be 1 or more")
        if not self.places or len(set(self.places)) < len(self.places):
            listed = [place.name for place in self.places]
            raise reject("tuner.places", listed, "name attention, mlp or both, each once")


@register("tuner", AdapterConfig)
def build(config: AdapterConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts bottlenecks into the decoder layers, ViT blocks and mergers that the freeze policy leaves free.

    Args:
        config: Width, activation and places.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.

    Raises:
        UserError: Nothing with such a place is free.
    """
    from harness.tuner.bottleneck import free_modules, insert
    from harness.tuner.own_format import train

    modules = free_modules(loaded.model, config, policy)
    if not modules:
        listed = [place.name for place in config.places]
        raise reject("tuner.places", listed, "the freeze policy leaves no sub-layer of that kind free")
    return train(loaded, policy, config, insert, modules, DEFAULT_LR)
