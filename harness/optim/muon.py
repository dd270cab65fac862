"""Muon: momentum made orthogonal, for the matrices inside the network; AdamW for all else (Jordan, 2024).

B = m B + (1 - m) g; O = NewtonSchulz(m B + (1 - m) g), about U V^T of its singular value decomposition;
w = w - lr (s O + decay w), with s = 0.2 sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982, equation 4): updates
then have the rms of AdamW's, so that one rate, and `vit_lr` and `aligner_lr`, hold for both parts. `scale=original` is
Jordan's s = sqrt(max(1, rows / columns)), which wants rates near 0.02; AdamW's part then runs at the same high rate.

Embeddings, the head, vectors and what has not two dimensions (patch embedding, fused experts) go to AdamW, as Jordan
says. Deviation: a fused projection (qkv of the ViT) is one matrix, where he takes Q, K and V apart.
"""

import logging
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.errors import reject
from harness.optim.adam import AdamConfig
from harness.optim.config import check_betas
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

log = logging.getLogger(__name__)

EMBEDDINGS = ("embed_tokens", "lm_head", "pos_embed", "patch_embed")
"""Modules that stand at the ends of the network, and what is in them."""


class MuonScale(Enum):
    """How long an update is for a matrix of a given shape."""

    match_rms_adamw = "match_rms_adamw"
    original = "original"


@dataclass(kw_only=True, slots=True)
class MuonConfig(AdamConfig):
    """Muon for hidden matrices; beta1, beta2 and eps are those of AdamW for the rest."""

    name: str = "muon"
    momentum: float = 0.95
    """Decay of Muon's running mean of gradients, in [0, 1)."""
    nesterov: bool = True
    """Look ahead by one momentum step."""
    ns_steps: int = 5
    """Newton-Schulz iterations, 1 to 99: more make the update more orthogonal and the step slower."""
    scale: MuonScale = MuonScale.match_rms_adamw
    """match_rms_adamw: rates as for AdamW. original: Jordan's, with rates near 0.02."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        AdamConfig.__post_init__(self)
        check_betas(("momentum", self.momentum))
        if not 1 <= self.ns_steps < 100:
            raise reject("optim.ns_steps", self.ns_steps, "must be 1 to 99")

    def state_of(self, name: str, parameter: "nn.Parameter") -> float:
        """Returns the bytes of one running mean, or of AdamW's two."""
        return (1 if is_hidden(name, parameter) else 2) * parameter.nbytes


@register("optim", MuonConfig)
def build(config: MuonConfig, groups: list[dict[str, Any]]) -> "Optimizer":
    """Builds the optimiser: two in one.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: No hidden matrix trains.
    """
    from torch.optim import AdamW, Muon

    from harness.optim.adamw import choose_kernel
    from harness.optim.joint import Joint

    hidden = _part(groups, hidden=True)
    others = _part(groups, hidden=False)
    if not hidden:
        raise reject("optim", "muon", "no matrix inside the network trains, only what it leaves to AdamW; use adamw")
    muon = Muon(
        hidden,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr_fn=config.scale.value,
    )
    log.info(
        "Muon: %d matrices; AdamW: %d other parameters", *(sum(len(g["params"]) for g in p) for p in (hidden, others))
    )
    if not others:
        return Joint([muon])
    kernel = choose_kernel(parameter for group in others for _, parameter in group["params"])
    return Joint([muon, AdamW(others, betas=(config.beta1, config.beta2), eps=config.eps, **kernel)])


def is_hidden(name: str, parameter: "nn.Parameter") -> bool:
    """Says whether Muon updates a parameter: a true matrix that stands inside the network."""
    from harness.optim.group import decays

    return parameter.ndim == 2 and decays(parameter) and not any(part in EMBEDDINGS for part in name.split("."))


def _part(groups: list[dict[str, Any]], *, hidden: bool) -> list[dict[str, Any]]:
    """Returns the groups with only the parameters of one kind, those left with none dropped."""
    chosen = [group | {"params": [item for item in group["params"] if is_hidden(*item) == hidden]} for group in groups]
    return [group for group in chosen if group["params"]]
