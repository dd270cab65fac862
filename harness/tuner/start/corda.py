"""CorDA (Yang et al., arXiv 2406.05223): the weight is split after what it does on data, not after its values.

With C = E[x x^T] of a layer's inputs, W C = U S V^T, so W = U S (V^T C^-1). ipm trains the r largest components, which
matter most on the data; kpm the r smallest, which leaves alone what the data stands for. A = sqrt(S_r) V_r^T C^-1 and
B = U_r sqrt(S_r); their product is taken out of W. Deviation: the paper adds a small diagonal to C where it is
singular; here 1 % of its mean diagonal always, so that its Cholesky factor exists.

Shapes: R rank, D inputs, E outputs of a layer.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.tuner.layer_plan import Layer
from harness.tuner.outlook import Outlook
from harness.tuner.start.calibration import Moments, input_moments
from harness.tuner.start.config import CordaMethod
from harness.tuner.start.factors import Factors
from harness.tuner.start.weight import from_svd, weight_of

if TYPE_CHECKING:
    from harness.tuner.lora import LoraConfig

_DAMPING = 0.01


def corda(base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook) -> dict[str, Factors]:
    """Returns CorDA's start."""
    options = config.corda
    samples = (options.batches, options.batch_size, options.max_length)
    moments = input_moments(base, [layer.name for layer in layers], outlook, samples)
    return {
        layer.name: _factors(weight_of(base, layer, outlook), moments[layer.name], layer, config) for layer in layers
    }


def covariance(moments: Moments) -> Tensor:
    """Returns C with its small diagonal, (D, D) float32."""
    square_DD = moments.square_DD / moments.count
    return square_DD + _DAMPING * square_DD.diagonal().mean() * torch.eye(len(square_DD), device=square_DD.device)


def _factors(weight_ED: Tensor, moments: Moments, layer: Layer, config: "LoraConfig") -> Factors:
    C_DD = covariance(moments)
    U_EK, S_K, Vh_KD = torch.linalg.svd(weight_ED @ C_DD, full_matrices=False)
    if config.corda.method is CordaMethod.kpm:
        U_EK, S_K, Vh_KD = U_EK.flip(1), S_K.flip(0), Vh_KD.flip(0)
    V_DR = Vh_KD[: layer.rank].T
    # C has a condition number of up to a hundred times D, too much for float32.
    inverse_V_DR = torch.cholesky_solve(V_DR.double(), torch.linalg.cholesky(C_DD.double())).float()
    return from_svd(U_EK, S_K, inverse_V_DR, layer)
