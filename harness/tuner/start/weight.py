"""Starts from a layer's own weight: PiSSA and OLoRA, and orthogonal factors, which need its shape alone.

PiSSA (Meng et al., arXiv 2404.02948): W = U S V^T; A and B hold its r largest singular values, A = sqrt(S_r) V_r^T and
B = U_r sqrt(S_r); the base keeps the rest. OLoRA (Büyükakyüz, arXiv 2406.01775): W = Q R; B = Q_r, A = R_r. Both
products are taken out of W. All of PiSSA is divided by LoRA's scale, so that it is the principal part that trains.

Shapes: R rank, D inputs, E outputs of a layer.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.tuner.layer_plan import Layer
from harness.tuner.outlook import Outlook
from harness.tuner.start.factors import Factors

if TYPE_CHECKING:
    from harness.tuner.lora import LoraConfig


def pissa(base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook) -> dict[str, Factors]:
    """Returns PiSSA's start; `pissa_niter_N` takes a randomised SVD with N power iterations, as its section 3 does."""
    iterations = config.init.partition("_niter_")[2]
    start = {}
    for layer in layers:
        weight_ED = weight_of(base, layer, outlook)
        if iterations:
            U_ER, S_R, V_DR = torch.svd_lowrank(weight_ED, q=layer.rank, niter=int(iterations))
        else:
            U_ER, S_R, Vh_RD = torch.linalg.svd(weight_ED, full_matrices=False)
            V_DR = Vh_RD.T
        start[layer.name] = from_svd(U_ER, S_R, V_DR, layer)
    return start


def olora(base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook) -> dict[str, Factors]:
    """Returns OLoRA's start."""
    start = {}
    for layer in layers:
        Q_ER, R_RD = torch.linalg.qr(weight_of(base, layer, outlook))
        start[layer.name] = Factors(R_RD[: layer.rank].cpu(), Q_ER[:, : layer.rank].cpu())
    return start


def orthogonal(
    base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook
) -> dict[str, Factors]:
    """Returns random A and B, neither zero, whose product is: they meet in orthogonal halves of the R dimensions.

    As PEFT's (its source is datta0.github.io/posts/rethink-lora-init), a tenth of normal numbers; but in float32, for
    in bfloat16 the product is not zero.
    """
    start = {}
    for layer in layers:
        module: Any = base.get_submodule(layer.name)
        Q_RR, _ = torch.linalg.qr(torch.randn(layer.rank, layer.rank))
        A_RD = Q_RR[0::2].T @ torch.randn(layer.rank // 2, module.in_features) / 10
        B_ER = torch.randn(module.out_features, layer.rank // 2) @ Q_RR[1::2] / 10
        start[layer.name] = Factors(A_RD, B_ER)
    return start


def weight_of(base: PreTrainedModel, layer: Layer, outlook: Outlook) -> Tensor:
    """Returns a layer's weight, (E, D) float32, on the run's device."""
    weight: Any = base.get_submodule(layer.name).weight
    return weight.detach().to(outlook.device, torch.float32)


def from_svd(U_ER: Tensor, S_R: Tensor, V_DR: Tensor, layer: Layer) -> Factors:
    """Returns factors whose product times LoRA's scale is U S V^T cut to the layer's rank."""
    root_R = (S_R[: layer.rank] / layer.scale).sqrt()
    return Factors((V_DR[:, : layer.rank] * root_R).T.cpu(), (U_ER[:, : layer.rank] * root_R).cpu())
