"""EVA (Paischer et al., arXiv 2410.07170): A holds the main directions of a layer's inputs; ranks go where they pay.

A's rows are the first right-singular vectors of the layer's centred inputs over training samples, B is zero. All
directions of all layers are sorted by the share of their layer's variance that they explain; the first sum(r) of them
are kept, at most rho r a layer: layers end with different ranks, some with none, at the same number in all. A layer's
scale stays as it was. Deviation: the paper's incremental SVD stops when its vectors stand still; here the covariance of
a set number of samples is decomposed exactly.

Shapes: R rank, D inputs, E outputs of a layer.
"""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.tuner.layer_plan import Layer, smaller_side
from harness.tuner.outlook import Outlook
from harness.tuner.start.calibration import Moments, input_moments
from harness.tuner.start.factors import Factors

if TYPE_CHECKING:
    from harness.tuner.lora import LoraConfig

log = logging.getLogger(__name__)


def eva(base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook) -> dict[str, Factors]:
    """Returns EVA's start, of the layers that keep a rank."""
    options = config.eva
    samples = (options.batches, options.batch_size, options.max_length)
    moments = input_moments(base, [layer.name for layer in layers], outlook, samples)
    most = {layer.name: min(round(layer.rank * options.rho), smaller_side(base, layer.name)) for layer in layers}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for own in moments.values():
        if id(own) not in found:
            found[id(own)] = _directions(own, max(most[name] for name in moments if moments[name] is own))
    shares = {layer.name: found[id(moments[layer.name])][0][: most[layer.name]] for layer in layers}
    ranks = distributed(shares, sum(layer.rank for layer in layers))
    dropped = [name for name, rank in ranks.items() if rank == 0]
    log.info("eva: ranks %d to %d; without: %s", min(ranks.values()), max(ranks.values()), ", ".join(dropped) or "none")
    start = {}
    for layer in layers:
        if rank := ranks[layer.name]:
            A_RD = found[id(moments[layer.name])][1][:rank]
            E = base.get_submodule(layer.name).out_features
            start[layer.name] = Factors(A_RD, torch.zeros(E, rank))  # type: ignore[call-overload]
    return start


def distributed(shares: dict[str, Tensor], budget: int) -> dict[str, int]:
    """Returns each layer's rank: how many of its directions are among the `budget` best of all.

    Args:
        shares: Share of a layer's variance that each direction explains, falling.
        budget: Sum of the ranks.
    """
    owners = [name for name, share in shares.items() for _ in share]
    best = torch.cat(list(shares.values())).argsort(descending=True, stable=True)[:budget]
    chosen = [owners[index] for index in best.tolist()]
    return {name: chosen.count(name) for name in shares}


def _directions(moments: Moments, number: int) -> tuple[Tensor, Tensor]:
    """Returns the share of the variance that each of the first directions explains, and the directions, (number, D)."""
    mean_D = moments.sum_D / moments.count
    covariance_DD = moments.square_DD / moments.count - torch.outer(mean_D, mean_D)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    shares = values_D.flip(0).clamp_min(0) / values_D.clamp_min(0).sum()
    return shares[:number].cpu(), vectors_DD.flip(1)[:, :number].T.cpu()
