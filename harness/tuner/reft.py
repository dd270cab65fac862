"""ReFT (Wu et al., arXiv 2404.03592): edits of what decoder layers give, in a subspace of a few dimensions.

h is a token's hidden state behind a layer, R has orthonormal rows, W and P are free, b is a vector:

    loreft    h + R^T (f(W h + b) - R h)      noreft    h + P^T (f(W h + b) - P h - c)
    consreft  h + R^T (b - R h)               lobireft  h + R^T b
    direft    h + R^T f(W h + b)              nodireft  h + P^T f(W h + b)

f is linear in the paper; c is zero but with `projection_bias`. Positions are the paper's first p and last s of each
sample's prompt, in one edit for both (its tied variant), or all positions, answers and generated tokens too.

Deviations: dropout falls on the R coordinates of the edit, where the reference drops whole values of h. Only the LLM is
edited, as in the paper. R is made from free weights by a QR decomposition: the reference's parametrisation, torch's
`orthogonal`, keeps a D x D matrix for each layer, and any weight decay rounds its signs, and with them R, to zero.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.model.component import Component, names
from harness.registry import register
from harness.tuner.activation import Activation
from harness.tuner.inserted import InsertedConfig
from harness.tuner.low_rank import check_dropout

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned

DEFAULT_LR = 9e-4
"""Learning rate of the paper's runs on instructions, common sense and arithmetic."""


class Intervention(Enum):
    """A formula; the spec writes LoreftIntervention for loreft, and so on."""

    loreft = "loreft"
    noreft = "noreft"
    consreft = "consreft"
    lobireft = "lobireft"
    direft = "direft"
    nodireft = "nodireft"


class Start(Enum):
    """First values of an edit."""

    reference = "reference"
    identity = "identity"


_CONSTANT = (Intervention.consreft, Intervention.lobireft)


@dataclass(kw_only=True, slots=True)
class ReftConfig(InsertedConfig):
    """Defaults: the spec's."""

    size: ClassVar[str] = "rank"
    name: str = "reft"
    layers: list[int] | None = None
    """LLM layers whose output is edited, from 0; null: all that are free. With a prefix alone not the last, which no
    other token reads from."""
    rank: int = 4
    """Dimensions of the subspace that an edit lies in."""
    intervention: Intervention = Intervention.loreft
    """Formula: loreft, noreft, consreft, lobireft, direft, nodireft."""
    prefix: int | None = None
    """Edit the first N tokens of each prompt. Null here and in suffix: every token, answers too."""
    suffix: int | None = None
    """Edit the last N tokens of each prompt; it ends where the first supervised token is predicted."""
    activation: Activation = Activation.linear
    """Function of W h + b; not for consreft and lobireft, which have none."""
    dropout: float = 0.0
    """Probability of dropping a coordinate of the edit, 0 to 1."""
    projection_bias: bool = False
    """The bias c of noreft (`add_bias` of the reference)."""
    start: Start = Start.reference
    """First values: reference (random, changes the model) or identity (starts as the base model; not for consreft)."""

    @property
    def needs_whole_rows(self) -> str | None:
        """Why a slice of a row's tokens will not do, or None."""
        return "edits by the place in a prompt (tuner.prefix, suffix)" if self.prefix or self.suffix else None

    def __post_init__(self) -> None:
        InsertedConfig.__post_init__(self)
        if self.rank < 1:
            raise reject("tuner.rank", self.rank, "must be 1 or more")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise reject("tuner.layers", self.layers, "name at least one layer, each once, or null for all")
        for key in ("prefix", "suffix"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise reject(f"tuner.{key}", getattr(self, key), "must be 1 or more, or null for none")
        check_dropout(self.dropout)
        kind = self.intervention
        if kind in _CONSTANT and self.activation is not Activation.linear:
            raise reject("tuner.activation", self.activation.name, f"{kind.name} learns a constant; use linear")
        if self.projection_bias and kind is not Intervention.noreft:
            raise reject("tuner.projection_bias", True, f"{kind.name} has no such bias; use noreft")
        if self.start is Start.identity:
            self._check_identity()

    def _check_identity(self) -> None:
        kind, activation = self.intervention, self.activation
        if kind is Intervention.consreft:
            raise reject("tuner.start", "identity", "consreft overwrites a subspace whatever b is; use reference")
        replaces = kind in (Intervention.loreft, Intervention.noreft)
        if (replaces and activation is not Activation.linear) or activation is Activation.sigmoid:
            raise reject(
                "tuner.start", "identity", f"{kind.name} can not start so with activation={activation.name}; use linear"
            )


@register("tuner", ReftConfig)
def build(config: ReftConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts an intervention behind the decoder layers that the freeze policy leaves free.

    Args:
        config: Formula, rank, layers and positions.
        loaded: The frozen base model.
        policy: Where interventions may go.
        outlook: Not looked at.

    Raises:
        UserError: A layer does not exist or is frozen, the rank exceeds the width, or the policy leaves more free.
    """
    from harness.tuner.intervention import insert
    from harness.tuner.own_format import train

    text = loaded.model.config.text_config
    if config.rank > text.hidden_size:
        raise reject("tuner.rank", config.rank, f"must be at most {text.hidden_size}, the width of the LLM")
    layers = _free_layers(config, text.num_hidden_layers, policy)
    idle = policy.components() - policy.full_components() - {Component.llm}
    if idle:
        listed = names(sorted(idle, key=lambda item: item.value))
        raise reject(
            "tuner", "reft", f"edits the LLM alone: freeze {listed} (freeze.frozen), or name it in freeze.full"
        )
    modules = [f"model.language_model.layers.{number}" for number in layers]
    return train(loaded, policy, config, insert, modules, DEFAULT_LR)


def _free_layers(config: ReftConfig, count: int, policy: "Policy") -> list[int]:
    free = [number for number in range(count) if policy.allows(f"model.language_model.layers.{number}")]
    unread = [count - 1] if config.prefix is not None and config.suffix is None else []
    if not set(free) - set(unread):
        raise reject("tuner", "reft", "edits the LLM's layers, and the freeze policy leaves none free to it")
    for number in config.layers or ():
        if not 0 <= number < count:
            raise reject("tuner.layers", config.layers, f"there is no layer {number}; the LLM has 0 to {count - 1}")
        if number not in free:
            raise reject("tuner.layers", config.layers, f"the freeze policy keeps layer {number} frozen")
        if number in unread:
            remedy = f"nothing behind the last layer reads tuner.prefix; leave {number} out, or give a tuner.suffix"
            raise reject("tuner.layers", config.layers, remedy)
    return sorted(set(free) - set(unread)) if config.layers is None else sorted(config.layers)
