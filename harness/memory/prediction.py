"""Peak GPU memory of a training step, from shapes, and the policy that is fastest of those that fit (memory=auto).

    peak = weights + gradients + optimiser state + max(all kept + head, kept + a layer's backward pass)

What layers keep: `harness.memory.kept`. The head's share is its logits on supervised positions with what the loss makes
of them. Not in it: validation and generation, the tuner's start, and what the CUDA context takes beside torch; memory
that allocation in blocks wastes is allowed for by `SPARE`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from harness.data.extent import Extent
from harness.memory.kept import Kept
from harness.memory.quant.linear import quantized_layers
from harness.memory.strategy.config import Bytes, Model, StrategyConfig
from harness.model.loss import CHUNK, is_frozen_matrix
from harness.optim.config import OptimConfig

GIB = 2**30
SPARE = 1.05
"""Predictions times this, and `SPARE_GIB` more, have to fit."""
SPARE_GIB = 0.5
_HEAD_BYTES = 12
"""A logit of a head that trains: its logarithmic probability, and the gradients of that and of itself, in float32."""
_FROZEN_HEAD_BYTES = 8
"""Of one that does not: itself and its gradient in 16 bits, its probability in float32."""
_FUSED_HEAD_BYTES = 4
"""And compiled: itself and its gradient."""
_BATCHES = 2
"""On the GPU at a time: the one in use and the next."""
_COST = {"none": 0.0, "selective": 0.65, "full": 1.0}
"""Time of what a layer computes again, in its forward passes: selective leaves out attention and half of the products'
arithmetic, but not gate, up and what is bound by memory."""
_OFFLOAD_COST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `memory=auto` chooses among; the fields are those of the config."""

    checkpointing: str = "none"
    checkpointed_layers: int | None = None
    vit_checkpointing: str = "none"
    offload_activations: bool = False

    def text(self) -> str:
        """Spells the choice as keys."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return " ".join(f"memory.{name}={value}" for name, value in values.items() if value not in (None, False))


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes that no policy changes."""

    weights: int
    gradients: int
    optimizer: int
    images: int
    """Pixels, and what stands in the place of visual tokens."""
    head: int
    backward: int
    """Gradients of one layer's activations."""
    update: int = 0
    """What the optimiser makes for its update, when activations are freed."""


class Sizes(NamedTuple):
    """What `predict` takes beside a plan."""

    fixed: Fixed
    layers: list[Kept]
    """Of the LLM, from the bottom."""
    blocks: list[Kept]
    """Of the ViT; empty where it keeps nothing."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A plan and the GiB that it needs, by what they are for."""

    plan: Plan
    parts: dict[str, float]

    @property
    def peak_gib(self) -> float:
        """What torch will have allocated at the peak, without what is spare."""
        return sum(self.parts.values())

    @property
    def needed_gib(self) -> float:
        """What has to be free."""
        return self.peak_gib * SPARE + SPARE_GIB


def fixed(
    model: nn.Module,
    base: PreTrainedModel,
    extent: Extent,
    optim: OptimConfig,
    strategy: StrategyConfig,
    processes: int,
    compiled: bool = False,
    saved: int = 0,
) -> Fixed:
    """Returns what weights, optimiser and head take.

    Args:
        model: The tuned model: its parameters, and which of them train.
        base: The Qwen3-VL inside.
        extent: The largest micro-batch.
        optim: The optimiser's config.
        strategy: Of the processes.
        processes: Their number.
        compiled: Whether layers and head are compiled.
        saved: Bytes by which weights will still shrink.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    needs = optim.footprint(trained)
    text: Any = base.config.get_text_config()
    head = min(extent.supervised, CHUNK) * text.vocab_size * _head_bytes(base, compiled)
    backward = extent.tokens * (8 * text.hidden_size + 6 * text.intermediate_size)
    total, layers = _bytes(model), [_bytes(layer) for layer in base.model.language_model.layers]
    whole = Bytes(total - saved, needs.gradients, needs.state)
    largest = (1 - saved / total) * max(layers)
    values, trained_bytes = sum(p.numel() for _, p in trained), sum(p.nbytes for _, p in trained)
    split = Model(whole, values, trained_bytes, largest, total - sum(layers))
    weights, gradients, state = map(int, strategy.held(split, processes))
    return Fixed(weights, gradients, state, _images(base, extent), head, backward, int(needs.update))


def trained_share(model: nn.Module) -> float:
    """Returns the bytes of the weights that train over those of all."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad) / _bytes(model)


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters()) + sum(m.side_bytes for _, m in quantized_layers(module))


def _head_bytes(base: PreTrainedModel, compiled: bool) -> int:
    """Returns what a logit takes."""
    if not is_frozen_matrix(base.lm_head):
        return _HEAD_BYTES
    return _FUSED_HEAD_BYTES if compiled else _FROZEN_HEAD_BYTES


def _images(base: PreTrainedModel, extent: Extent) -> int:
    visual: Any = base.model.visual
    patch = visual.patch_embed
    values = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2 * visual.spatial_merge_size**2
    features = base.config.get_text_config().hidden_size * (1 + len(visual.deepstack_visual_indexes))
    return extent.visual * (4 * values * _BATCHES + features * base.dtype.itemsize)


def predict(plan: Plan, fixed: Fixed, layers: list[Kept], blocks: list[Kept]) -> Prediction:
    """Returns what a plan needs.

    Args:
        plan: The plan.
        fixed: See there.
        layers: Of the LLM, from the bottom.
        blocks: Of the ViT; empty where it keeps nothing.
    """
    count = len(layers) if plan.checkpointed_layers is None else plan.checkpointed_layers
    below, above = layers[:count], layers[count:]
    held = sum(0 if plan.offload_activations else layer.full for layer in below)
    # What selective keeps beside the input stays on the GPU.
    held += sum(getattr(layer, plan.checkpointing) - layer.full for layer in below)
    seen = sum(getattr(block, plan.vit_checkpointing) for block in blocks)
    again = max((layer.none for layer in below), default=0) if plan.checkpointing != "none" else 0
    # Checkpointed layers come last in the backward pass: the others have freed what they kept.
    kept = held + seen + sum(layer.none for layer in above)
    peak = max(kept + fixed.head, kept + fixed.backward, held + seen + again + fixed.backward, fixed.update)
    parts = {
        "weights": fixed.weights,
        "gradients": fixed.gradients,
        "optimizer": fixed.optimizer,
        "images": fixed.images,
        "activations": min(kept, peak),
        "head, backward pass or update": max(peak - kept, 0),
    }
    return Prediction(plan, {name: size / GIB for name, size in parts.items()})


def plans(layers: int, vit: bool) -> list[Plan]:
    """Returns all plans, the fastest first.

    Args:
        layers: Of the LLM.
        vit: Whether the ViT keeps activations.
    """
    found = [(cost(plan, layers), place, plan) for place, plan in enumerate(_plans(layers, vit))]
    return [plan for *_, plan in sorted(found, key=lambda item: item[:2])]


def _plans(layers: int, vit: bool) -> Iterator[Plan]:
    for seen in ("none", "full") if vit else ("none",):
        yield Plan(vit_checkpointing=seen)
        for policy in ("selective", "full"):
            for number in range(1, layers + 1):
                plan = Plan(checkpointing=policy, checkpointed_layers=number, vit_checkpointing=seen)
                yield plan
        yield replace(plan, offload_activations=True)


def cost(plan: Plan, layers: int) -> float:
    """Returns the time that a plan adds to a step, in forward passes of a layer of the LLM."""
    # A block of the ViT, frozen or not, has little beside a layer of the LLM; all of them count as two layers.
    count = layers if plan.checkpointed_layers is None else plan.checkpointed_layers
    again = count * _COST[plan.checkpointing] + 2 * _COST[plan.vit_checkpointing]
    return again + (_OFFLOAD_COST * layers if plan.offload_activations else 0)
