"""LISA: AdamW on a few decoder layers at a time, drawn anew every so often (Pan et al., arXiv 2403.17919, algorithm 1).

Every `step_interval` steps, `activated_layers` of the LLM's layers are drawn, uniformly and without replacement; the
others get neither gradients nor updates. Embedding, final norm and head always train. ViT and mergers follow the freeze
policy and train always: the paper has text models only.

Which layers train in step s depends on the seed and on s // step_interval alone. A step that fp16's gradient scaler
skips is not counted. The paper ran each interval as a process of its own (its authors in LMFlow #729), so that running
means began anew; here those of the layers do, by default, and those of what always trains go on.
"""

import logging
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.optim.adam import AdamConfig
from harness.optim.footprint import Footprint, Trained
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn

    from harness.optim.lisa_optimizer import Lisa

log = logging.getLogger(__name__)


class LayerState(Enum):
    """What becomes of a layer's running means when its turn ends."""

    drop = "drop"
    keep = "keep"


@dataclass(kw_only=True, slots=True)
class LisaConfig(AdamConfig):
    """AdamW on some of the LLM's layers in turn; for full fine-tuning only."""

    full_only: ClassVar[bool] = True
    skips_parameters: ClassVar[bool] = True

    name: str = "lisa"
    activated_layers: int = 2
    """Layers that train at a time, 1 or more and fewer than train in all; ms-swift recommends 2 or 8."""
    step_interval: int = 20
    """Optimiser steps until other layers are drawn, 1 or more."""
    layer_state: LayerState = LayerState.drop
    """Running means of a layer whose turn is over: drop frees their memory, keep lets the next turn go on with them."""
    seed: int = 42
    """Seed of the choice of layers; the run's own unless given."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        AdamConfig.__post_init__(self)
        for key in ("activated_layers", "step_interval"):
            if getattr(self, key) < 1:
                raise reject(f"optim.{key}", getattr(self, key), "must be 1 or more")
        if self.seed < 0:
            raise reject("optim.seed", self.seed, "must be 0 or more")

    def footprint(self, trained: Trained) -> Footprint:
        """Returns what takes turns by the share of layers that are active; with kept states, all of these."""
        layers = layers_of(trained)
        turns = [item for items in layers.values() for item in items]
        names = {name for name, _ in turns}
        always = AdamConfig.footprint(self, [item for item in trained if item[0] not in names])
        share = min(self.activated_layers / max(len(layers), 1), 1.0)
        active = AdamConfig.footprint(self, turns)
        kept = 1.0 if self.layer_state is LayerState.keep else share
        return Footprint(always.gradients + share * active.gradients, always.state + kept * active.state)


def layers_of(trained: Trained) -> dict[int, list[tuple[str, "nn.Parameter"]]]:
    """Returns what trains in the layers of the LLM, by their numbers."""
    from harness.optim.depth import layer_of

    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained:
        layer = layer_of(name)
        if layer is not None and layer[0].value == "llm":
            layers.setdefault(layer[1], []).append((name, parameter))
    return layers


@register("optim", LisaConfig)
def build(config: LisaConfig, groups: list[dict[str, Any]]) -> "Lisa":
    """Builds the optimiser, which from then on decides which decoder layers require gradients.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: As many layers or fewer train than are to be active.
    """
    from harness.optim.adamw import choose_kernel
    from harness.optim.lisa_optimizer import Lisa

    named = layers_of([item for group in groups for item in group["params"]])
    layers = {number: [parameter for _, parameter in items] for number, items in named.items()}
    if config.activated_layers >= len(layers):
        remedy = f"{len(layers)} layers of the LLM train in all; give fewer" if layers else "no layer of the LLM trains"
        raise reject("optim.activated_layers", config.activated_layers, f"{remedy}, or use optim=adamw")
    optimizer = Lisa(
        groups,
        layers,
        count=config.activated_layers,
        interval=config.step_interval,
        seed=config.seed,
        keeps_state=config.layer_state is LayerState.keep,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        **choose_kernel(parameter for group in groups for _, parameter in group["params"]),
    )
    # As for AdamW: the fused kernel must not take over fp16's unscaling.
    optimizer._step_supports_amp_scaling = False
    log.info("LISA: %d of %d layers of the LLM at a time", config.activated_layers, len(layers))
    return optimizer
