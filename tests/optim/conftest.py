from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

LAYER = "model.language_model.layers.{}.mlp.up_proj.weight"


@dataclass
class Problem:
    """Named parameters in one group that decays and one that does not, with gradients that follow from the step."""

    shapes: dict[str, tuple[int, ...]]
    lr: float = 1e-2
    weight_decay: float = 0.1
    dtype: torch.dtype = torch.float64
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = {
            name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype))
            for name, shape in self.shapes.items()
        }

    @property
    def groups(self) -> list[dict]:
        matrices = [(name, p) for name, p in self.parameters.items() if p.ndim > 1]
        vectors = [(name, p) for name, p in self.parameters.items() if p.ndim <= 1]
        return [
            {"params": members, "lr": self.lr, "weight_decay": decay, "name": name, "component": "llm"}
            for members, decay, name in ((matrices, self.weight_decay, "llm"), (vectors, 0.0, "llm_no_decay"))
            if members
        ]

    def gradients(self, step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 + step)
        return {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            for name, p in self.parameters.items()
        }

    def train(self, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for name, gradient in self.gradients(step).items():
                self.parameters[name].grad = gradient
            optimizer.step()

    def values(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}


@pytest.fixture
def make_problem():
    """Makes a matrix of a decoder layer, its norm, and what else is named; twice the same."""

    def make(**settings) -> Problem:
        shapes = {LAYER.format(0): (6, 4), "model.language_model.norm.weight": (6,)}
        return Problem(shapes | settings.pop("shapes", {}), **settings)

    return make
