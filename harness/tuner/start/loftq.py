"""LoftQ (Li et al., arXiv 2310.08659): the base is quantised, and A and B start from what that takes away.

Algorithm 1, T times: Q = q(W - s B A), then s B A = the best product of rank r for W - Q, from A = B = 0. So the model
starts close to the checkpoint, which a quantised base without it does not. q is NF4 (Dettmers et al., arXiv 2305.14314,
appendix E), each block of 64 values over its largest, or int8 by rows. Deviations: LoRA's scale s is divided out, so
that the start is that of the paper at any alpha; and the quantised values are held in the base's own type, where they
train as a quantised base would, but save no memory.

Shapes: R rank, D inputs, E outputs of a layer; N values of a block.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.tuner.layer_plan import Layer
from harness.tuner.outlook import Outlook
from harness.tuner.start.factors import Factors
from harness.tuner.start.weight import from_svd, weight_of

if TYPE_CHECKING:
    from harness.tuner.lora import LoraConfig

_BLOCK = 64
_NF4_BELOW_0 = (-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
_NF4_ABOVE_0 = (0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0)
_NF4 = (*_NF4_BELOW_0, 0.0, *_NF4_ABOVE_0)


def loftq(base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook) -> dict[str, Factors]:
    """Returns the last product of the alternation, and the one before, from which the base is quantised."""
    start = {}
    for layer in layers:
        weight_ED = weight_of(base, layer, outlook)
        E, D = weight_ED.shape
        factors = Factors(torch.zeros(layer.rank, D), torch.zeros(E, layer.rank))
        for _ in range(config.loftq.iterations):
            before = factors
            rest_ED = weight_ED - rebased(weight_ED, before.A_RD, before.B_ER, layer, config)
            U_ER, S_R, Vh_RD = torch.linalg.svd(rest_ED, full_matrices=False)
            factors = from_svd(U_ER, S_R, Vh_RD.T, layer)
        start[layer.name] = Factors(factors.A_RD, factors.B_ER, before.A_RD, before.B_ER)
    return start


def rebased(weight_ED: Tensor, A_RD: Tensor, B_ER: Tensor, layer: Layer, config: "LoraConfig") -> Tensor:
    """Returns q(W - s B A), float32."""
    product_ED = layer.scale * (B_ER.to(weight_ED) @ A_RD.to(weight_ED))
    return fake_quantised(weight_ED - product_ED, config.loftq.bits)


def fake_quantised(weight_ED: Tensor, bits: int) -> Tensor:
    """Returns a weight's values after quantisation to 4 or 8 bits and back, in its own type."""
    if bits == 8:
        step_E1 = weight_ED.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        return (weight_ED / step_E1).round() * step_E1
    flat = weight_ED.flatten()
    blocks_BN = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    largest_B1 = blocks_BN.abs().amax(1, keepdim=True).clamp_min(1e-12)
    code = torch.tensor(_NF4, device=weight_ED.device, dtype=weight_ED.dtype)
    nearest_BN = torch.bucketize(blocks_BN / largest_B1, (code[1:] + code[:-1]) / 2)
    return (code[nearest_BN] * largest_B1).flatten()[: len(flat)].view_as(weight_ED)
