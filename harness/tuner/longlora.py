"""LongLoRA (Chen et al., arXiv 2309.12307): LoRA on attention, embeddings and norms, trained with sparse attention.

Training runs shifted sparse attention (`harness/model/shifted_sparse.py`) in the LLM; evaluation and generation see
everything, so that the result is a plain model. LoRA alone does not adapt to long samples: trained embeddings and norms
close the gap to full fine-tuning (section 3.3 and table 2), and are few weights.

For samples longer than the checkpoint was trained on, `model.rope_scaling` stretches the rotation; queries and keys are
rotated before they are grouped, so that the two combine freely.

Deviations: groups in training, see there. `group_ratio` counts from each sample's own length, not the row's; short
samples then have short groups, which `group_size` avoids. Norms are those of the LLM, its norms of queries and keys
among them. With either of the two trained, the export is the merged model in the type of the base weights, `model/`;
else it is the adapter.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.low_rank import LowRankConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
_RATIO = 0.25


@dataclass(kw_only=True, slots=True)
class LongloraConfig(LowRankConfig):
    """LoRA's fields, the groups, and what trains beside. Needs model.attention varlen or sdpa."""

    needs_whole_rows: ClassVar[str] = "halves the heads for attention in groups of a whole row's tokens"

    name: str = "longlora"
    target_modules: list[str] = field(default_factory=lambda: list(_TARGETS))
    """Module names as a suffix, or all-linear. The paper's: the projections of the LLM's attention."""
    group_ratio: float = _RATIO
    """Tokens of a group of sparse attention, as a share of the sample's length: 1/4 in the paper; 1 sees all."""
    group_size: int | None = None
    """Instead of group_ratio: tokens of a group. Samples no longer than this train with full attention."""
    train_embeddings: bool = True
    """Train the LLM's token embedding, and with it the head where the two are tied."""
    train_norms: bool = True
    """Train the weights of the LLM's normalisations."""

    @property
    def exports_model(self) -> bool:
        """Whether the whole model is written, frozen weights included."""
        return self.train_embeddings or self.train_norms

    def __post_init__(self) -> None:
        if self.target_regex is not None and self.target_modules == _TARGETS:
            # What the default says, the pattern replaces.
            self.target_modules = ["all-linear"]
        LowRankConfig.__post_init__(self)
        if not 0 < self.group_ratio <= 1:
            raise reject("tuner.group_ratio", self.group_ratio, "must be above 0 and at most 1")
        if self.group_size is not None and self.group_size < 2:
            raise reject("tuner.group_size", self.group_size, "must be 2 or more, or null")
        if self.group_size is not None and self.group_ratio != _RATIO:
            raise reject("tuner.group_size", self.group_size, "stands instead of tuner.group_ratio: give one")


@register("tuner", LongloraConfig)
def build(config: LongloraConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts LoRA into the model, marks embeddings and norms, and sets sparse attention for training.

    Args:
        config: Adapters, groups and what trains beside.
        loaded: The frozen base model.
        policy: Where adapters may go; embeddings and norms that it freezes stay frozen.
        outlook: Not looked at.
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig

    from harness.model.component import Component, component_of, strip_peft
    from harness.model.shifted_sparse import Groups, use_shifted_sparse
    from harness.tuner.merged import exporter
    from harness.tuner.peft_adapter import wrap

    base_dtype = loaded.model.dtype
    own = _own_weights(loaded.model, config, policy)
    _check_beside(loaded.model, config, policy, own)
    use_shifted_sparse(loaded.model, Groups(config.group_ratio, config.group_size))
    tuned = wrap(
        loaded,
        policy,
        config,
        PeftLoraConfig,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
    )
    if Component.llm not in map(component_of, tuned.adapter):
        raise reject(
            "tuner.target_modules", config.target_modules, "tuner=longlora is for the LLM, and gets none there"
        )
    for name, parameter in tuned.model.named_parameters():
        if strip_peft(name) in own:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(getattr(torch, config.dtype.name))
    if own:
        tuned.export = exporter(tuned, base_dtype)
    return tuned


def _own_weights(model: "PreTrainedModel", config: LongloraConfig, policy: "Policy") -> list[str]:
    """Returns the names of the model's own weights that train.

    Raises:
        UserError: The policy freezes all of the embeddings or norms that should train.
    """
    language = [name for name, _ in model.named_parameters() if name.startswith("model.language_model.")]
    chosen: list[str] = []
    for key, end in (("train_embeddings", "embed_tokens.weight"), ("train_norms", "norm.weight")):
        free = [name for name in language if name.endswith(end) and name in policy.free - policy.full]
        if not getattr(config, key):
            continue
        if not free:
            raise reject(f"tuner.{key}", "true", "the freeze policy keeps them frozen: free them, or set it to false")
        chosen += free
    return chosen


def _check_beside(model: "PreTrainedModel", config: LongloraConfig, policy: "Policy", own: list[str]) -> None:
    """Refuses a module to save whose weights train already: PEFT would make a second copy of them.

    Raises:
        UserError: There is one.
    """
    from harness.tuner.beside import modules_beside

    trained = {id(model.get_parameter(name)) for name in own}
    for name in modules_beside(model, config.modules_to_save, policy):
        if any(id(parameter) in trained for parameter in model.get_submodule(name).parameters()):
            raise reject("tuner.modules_to_save", name, "trains by tuner.train_embeddings or train_norms; leave it out")
