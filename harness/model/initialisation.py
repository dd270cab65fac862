"""`model.init_strategy`: first values of weights that a checkpoint does not give.

The rules are those of `torch.nn.init`: zero, uniform and normal of the checkpoint's own spread (`initializer_range`,
0.02), Xavier (Glorot and Bengio 2010), Kaiming (arXiv 1502.01852), orthogonal (arXiv 1312.6120). `mean` gives the rows
of new tokens the mean of the rows of old ones: their logits then begin no higher than the log of the mean of the
others' exponentials, so N new tokens among V take at most N / (N + V) of the probability (Hewitt 2021). A row drawn at
random can begin above every old token. Draws depend on the run's seed alone.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from harness.errors import reject
from harness.model.qwen3_vl import InitStrategy

log = logging.getLogger(__name__)

_Rule = Callable[[Tensor, float, Generator], object]
_RULES: dict[InitStrategy, _Rule] = {
    InitStrategy.zero: lambda tensor, std, draw: nn.init.zeros_(tensor),
    InitStrategy.uniform: lambda tensor, std, draw: nn.init.uniform_(
        tensor, -std * math.sqrt(3), std * math.sqrt(3), generator=draw
    ),
    InitStrategy.normal: lambda tensor, std, draw: nn.init.normal_(tensor, std=std, generator=draw),
    InitStrategy.xavier_uniform: lambda tensor, std, draw: nn.init.xavier_uniform_(tensor, generator=draw),
    InitStrategy.xavier_normal: lambda tensor, std, draw: nn.init.xavier_normal_(tensor, generator=draw),
    InitStrategy.kaiming_uniform: lambda tensor, std, draw: nn.init.kaiming_uniform_(tensor, generator=draw),
    InitStrategy.kaiming_normal: lambda tensor, std, draw: nn.init.kaiming_normal_(tensor, generator=draw),
    InitStrategy.orthogonal: lambda tensor, std, draw: nn.init.orthogonal_(tensor, generator=draw),
}


def draw(strategy: InitStrategy, shape: Sequence[int], std: float, generator: Generator) -> Tensor:
    """Returns a matrix or convolution kernel in float32 after a rule; one of three dimensions is a stack of matrices.

    Args:
        strategy: Any rule but `mean`.
        shape: Two dimensions or more.
        std: Standard deviation of `uniform` and `normal`.
        generator: Of the random numbers.
    """
    made = torch.empty(tuple(shape))
    for matrix in made if made.ndim == 3 else [made]:
        _RULES[strategy](matrix, std, generator)
    return made


def seeded() -> Generator:
    """Returns random numbers that the run's seed decides, whatever was drawn since."""
    return Generator().manual_seed(torch.initial_seed() % 2**63)


def fill_absent(model: PreTrainedModel, absent: Sequence[str], strategy: InitStrategy) -> None:
    """Gives matrices that the checkpoint lacks their first values, in place, and says which.

    Vectors keep what transformers gave them, norms 1 and biases 0: no rule is made for those.

    Args:
        model: As loaded.
        absent: Names of parameters.
        strategy: The rule.

    Raises:
        UserError: The rule is for new tokens alone.
    """
    if strategy is InitStrategy.mean:
        remedy = f"is for new tokens alone, and the checkpoint lacks {absent[0]}; choose another"
        raise reject("model.init_strategy", strategy.name, remedy)
    generator, std = seeded(), model.config.get_text_config().initializer_range
    for name in absent:
        parameter = model.get_parameter(name)
        if parameter.ndim > 1:
            parameter.data.copy_(draw(strategy, parameter.shape, std, generator))
    names = ", ".join(absent)
    log.warning("model.init_strategy=%s: absent from the checkpoint, initialised: %s", strategy.name, names)
