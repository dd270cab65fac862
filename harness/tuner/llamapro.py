"""LLaMA Pro (Wu et al., arXiv 2401.02415): new decoder blocks between the old ones, and only the new ones train.

The L layers of the LLM are split into N groups; behind each group stand P / N copies of its last layer, of P new blocks
in all. A copy starts with its output projections at zero (`o_proj` and `down_proj`), so that x + attention(x) + mlp(x)
is x and the deeper model is the old one (section 3.1).

Deviations: Qwen3-VL adds visual features behind its first layers, by their number (DeepStack, 2406.04334). A new block
among those would move them, in every library that loads the export. So no block stands before the last of them: a group
that ends earlier is taken to end there. The paper trains the copies at 2e-4 in pretraining; the default here is that of
full fine-tuning.

It is no full fine-tuning for optimisers that ask for that (`optim` lisa, galore): LISA would train the old layers. As
with an adapter, `freeze.full` names components of the vision side that train themselves beside the new blocks.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.trained_dtype import TrainedDtype

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class LlamaproConfig:
    """How many blocks, and where. The LLM itself stays frozen, whatever the freeze policy."""

    exports_model: ClassVar[bool] = True
    """Writes the whole model, frozen weights included."""
    name: str = "llamapro"
    num_new_blocks: int = 4
    """New decoder blocks in all. Each has as many weights as a layer of the LLM, and costs its time and memory."""
    num_groups: int | None = None
    """Groups of layers that get new blocks behind them; divides the layers and num_new_blocks. null: num_new_blocks."""
    dtype: TrainedDtype = TrainedDtype.float32
    """Storage type of trained weights. bfloat16 halves their memory and rounds most updates at usual rates away."""

    def __post_init__(self) -> None:
        if self.num_new_blocks < 1:
            raise reject("tuner.num_new_blocks", self.num_new_blocks, "must be 1 or more")
        if self.num_groups is None:
            return
        if self.num_groups < 1:
            raise reject("tuner.num_groups", self.num_groups, "must be 1 or more, or null")
        if self.num_new_blocks % self.num_groups:
            remedy = f"gives each group as many blocks, and does not divide tuner.num_new_blocks={self.num_new_blocks}"
            raise reject("tuner.num_groups", self.num_groups, remedy)


@register("tuner", LlamaproConfig)
def build(config: LlamaproConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts the new blocks into the LLM and marks them, and what `freeze.full` names, as trainable.

    The export is a checkpoint of more layers that transformers loads as any other, in the type of the base weights.

    Args:
        config: Number and place of the blocks.
        loaded: The frozen base model, changed in place.
        policy: Has to leave the whole LLM free; for the components that train in full.
        outlook: Not looked at.
    """
    import torch

    from harness.tuner.block_expansion import expand
    from harness.tuner.full import DEFAULT_LR
    from harness.tuner.tuned import Tuned

    model: Any = loaded.model
    base_dtype = model.dtype
    _check_policy(model, policy)
    behind = _places(config, len(model.model.language_model.layers), len(model.model.visual.deepstack_merger_list))
    log.info("new blocks stand behind layers %s", ", ".join(map(str, behind)))
    beside = [parameter for name, parameter in model.named_parameters() if name in policy.full]
    new = expand(model, behind)
    named = dict(model.named_parameters())
    for parameter in [*beside, *(named[name] for name in new)]:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.to(getattr(torch, config.dtype.name))

    def export(folder: Path) -> Path:
        model.to(base_dtype)
        model.save_pretrained(folder / "model")
        return folder / "model"

    return Tuned(model, model, export, DEFAULT_LR, new)


def _places(config: LlamaproConfig, num_layers: int, num_levels: int) -> list[int]:
    """Returns the number of the old layer behind which each new block stands, in order.

    Args:
        config: Number of blocks and groups.
        num_layers: Layers of the LLM.
        num_levels: Layers from the first on behind which visual features are added.

    Raises:
        UserError: The groups do not divide the layers.
    """
    groups = config.num_groups or config.num_new_blocks
    if num_layers % groups:
        fitting = [n for n in range(1, config.num_new_blocks + 1) if not (num_layers % n or config.num_new_blocks % n)]
        remedy = f"does not divide the {num_layers} layers of the LLM; set one of {fitting}"
        raise reject("tuner.num_groups", groups, remedy)
    size = num_layers // groups
    ends = [max(end, num_levels) - 1 for end in range(size, num_layers + 1, size)]
    if size < num_levels:
        log.info("visual features enter behind layers 0 to %d: groups before end there", num_levels - 1)
    return [end for end in ends for _ in range(config.num_new_blocks // groups)]


def _check_policy(model: Any, policy: "Policy") -> None:
    """Refuses a policy that the method can not follow.

    Raises:
        UserError: The policy freezes a part of the LLM or trains it in full, or leaves free what nothing would train.
    """
    from harness.model.component import Component, component_of, names

    llm = {name for name, _ in model.named_parameters() if component_of(name) is Component.llm}
    if frozen := sorted(llm - policy.free):
        raise reject("freeze", frozen[0], "the new blocks of tuner=llamapro stand in the LLM: leave all of it free")
    if Component.llm in policy.full_components():
        raise reject("freeze.full", "llm", "tuner=llamapro freezes the LLM but for its new blocks; leave it out")
    idle = {component_of(name) for name in policy.free - policy.full} - {Component.llm}
    if idle:
        listed = names(sorted(idle, key=lambda item: item.value))
        remedy = "tuner=llamapro trains nothing there: freeze it (freeze=vit_aligner), or name it in freeze.full"
        raise reject("freeze", f"{listed} free", remedy)
