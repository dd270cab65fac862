"""LoRA-GA (Wang et al., arXiv 2407.05000): A and B start along the gradient, so that LoRA's first step is that of W.

With G = U S V^T the gradient of a layer's weight, A gets singular vectors V and B others of U (algorithm 1: A the first
r, B the r after them), both times a factor; their product is taken out of W. The first step of gradient descent then
moves W by B B^T G + G A^T A, the best approximation of G of rank 2 r (theorem 3.1); LoRA's own moves it by G A^T A with
A random. The gradient is averaged over a few batches of training samples.

The choices of vectors and factors are those of the authors' code. PEFT's `lora_ga` differs: it multiplies S into B and
the factor into B alone. Deviation: a randomised SVD (Halko et al., arXiv 0909.4061) of 4 r vectors, as theirs.

Shapes: R rank, D inputs, E outputs of a layer.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import reject
from harness.tuner.layer_plan import Layer, smaller_side
from harness.tuner.outlook import Outlook
from harness.tuner.start.calibration import mean_gradients
from harness.tuner.start.config import Direction, LoraGaConfig, Scale
from harness.tuner.start.factors import Factors
from harness.tuner.start.weight import weight_of

if TYPE_CHECKING:
    from harness.tuner.lora import LoraConfig

_POWER_ITERATIONS = 4


def _shuffled(rank: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(2 * rank)
    return order[:rank], order[rank:]


_VECTORS: dict[Direction, Callable[[int], tuple[Tensor, Tensor]]] = {
    Direction.ArBr: lambda rank: (torch.arange(1, 2 * rank, 2), torch.arange(0, 2 * rank, 2)),
    Direction.A2rBr: lambda rank: (torch.arange(rank, 2 * rank), torch.arange(rank)),
    Direction.ArB2r: lambda rank: (torch.arange(rank), torch.arange(rank, 2 * rank)),
    Direction.random: _shuffled,
}
"""Which of the first 2 r singular vectors A and B get."""


def _as_weight(weight_ED: Tensor, layer: Layer, options: LoraGaConfig) -> float:
    _, S_R, _ = torch.svd_lowrank(weight_ED, q=min(4 * layer.rank, *weight_ED.shape), niter=_POWER_ITERATIONS)
    return (S_R[: layer.rank] / layer.scale).sqrt().mean().item()


_FACTOR: dict[Scale, Callable[[Tensor, Layer, LoraGaConfig], float]] = {
    Scale.gd: lambda weight_ED, layer, options: 1 / layer.scale,
    Scale.unit: lambda weight_ED, layer, options: 1.0,
    Scale.stable: lambda weight_ED, layer, options: weight_ED.shape[0] ** 0.25 / options.gamma**0.5,
    Scale.weightS: _as_weight,
}


def lora_ga(base: PreTrainedModel, layers: list[Layer], config: "LoraConfig", outlook: Outlook) -> dict[str, Factors]:
    """Returns LoRA-GA's start.

    Raises:
        UserError: A layer has fewer than 2 r singular vectors.
    """
    options = config.lora_ga
    for layer in layers:
        if 2 * layer.rank > smaller_side(base, layer.name):
            remedy = (
                f"lora_ga needs twice as many singular vectors, and {layer.name} has {smaller_side(base, layer.name)}"
            )
            raise reject("tuner.rank", layer.rank, remedy)
    samples = (options.iters, options.batch_size, options.max_length)
    gradients = mean_gradients(base, [layer.name for layer in layers], outlook, samples)
    start = {}
    for layer in layers:
        gradient_ED = gradients.pop(layer.name).to(outlook.device)
        U_EK, _, V_DK = torch.svd_lowrank(
            gradient_ED, q=min(4 * layer.rank, *gradient_ED.shape), niter=_POWER_ITERATIONS
        )
        of_A, of_B = _VECTORS[options.direction](layer.rank)
        factor = _FACTOR[options.scale](weight_of(base, layer, outlook), layer, options)
        start[layer.name] = Factors(
            (factor * V_DK.T[of_A.to(V_DK.device)]).cpu(), (factor * U_EK[:, of_B.to(U_EK.device)]).cpu()
        )
    return start
