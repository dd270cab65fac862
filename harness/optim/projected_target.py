"""Chooses the weight matrices whose gradients an optimiser projects."""

from typing import Any

from torch import nn

from harness.errors import reject
from harness.optim.projected import ProjectedConfig

ATTENTION_AND_MLP = ("attn", "mlp")
"""Parts of the module names of every attention and MLP layer, in the language model and in the vision tower."""
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")


def choose_targets(groups: list[dict[str, Any]], config: ProjectedConfig) -> dict[nn.Parameter, str]:
    """Returns the targets with their names, in the order of the groups.

    A matrix has two dimensions, or three where it stacks those of experts.

    Args:
        groups: What `parameter_groups` returned.
        config: Targets and rank.

    Raises:
        UserError: A target matches nothing that trains, or is smaller than the rank.
    """
    matrices = {name: p for group in groups for name, p in group["params"] if p.ndim in (2, 3)}
    chosen: set[str] = set()
    for part in config.target_modules or ATTENTION_AND_MLP:
        matched = {name for name in matrices if part in name.removesuffix(".weight")}
        if config.target_modules and not matched:
            leaves = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in matrices})
            raise reject("optim.target_modules", part, f"matches no matrix that trains; known: {', '.join(leaves)}")
        chosen |= matched
    if not chosen:
        raise reject("optim.target_modules", "null", "no attention or MLP matrix trains; name what to project")
    if config.with_embedding:
        embeddings = {name for name in matrices if name.endswith(EMBEDDINGS)}
        if not embeddings:
            raise reject("optim.with_embedding", True, "neither the embedding nor the head trains; leave it out")
        chosen |= embeddings
    targets = {parameter: name for name, parameter in matrices.items() if name in chosen}
    _check_rank(targets, config.rank)
    return targets


def _check_rank(targets: dict[nn.Parameter, str], rank: int) -> None:
    limit = min(min(parameter.shape[-2:]) for parameter in targets)
    for parameter, name in targets.items():
        if rank > min(parameter.shape[-2:]):
            shape = " x ".join(map(str, parameter.shape))
            raise reject("optim.rank", rank, f"{name} is {shape}; {limit} fits all targets, or leave it out of them")
