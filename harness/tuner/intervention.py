"""The six interventions of ReFT (Wu et al., arXiv 2404.03592) behind decoder layers; `reft.py` has their formulas.

Shapes: B rows, S tokens of a row, D width, R rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from harness.tuner.activation import function
from harness.tuner.compute import as_weight
from harness.tuner.prompt_position import PromptPositions
from harness.tuner.reft import Intervention, ReftConfig, Start

CHILD = "intervention"
"""Name of an intervention in its decoder layer."""


class Form(NamedTuple):
    """What tells the six apart."""

    orthonormal: bool
    """The edit's directions are orthonormal."""
    sees_hidden: bool
    """The new coordinates depend on h."""
    replaces: bool
    """They take the place of those that h has, and are not added to them."""


FORMS = {
    Intervention.loreft: Form(True, True, True),
    Intervention.noreft: Form(False, True, True),
    Intervention.consreft: Form(True, False, True),
    Intervention.lobireft: Form(True, False, False),
    Intervention.direft: Form(True, True, False),
    Intervention.nodireft: Form(False, True, False),
}


class OrthonormalRows(nn.Module):
    """Orthonormal rows that span what the rows of a free weight span: Q of its QR decomposition."""

    def __init__(self, width: int, rank: int, device: torch.device, dtype: torch.dtype) -> None:
        """Args: the shape (rank, width), and where and how the weight is held."""
        super().__init__()
        rows_RD = torch.empty(rank, width, device=device)
        self.weight = nn.Parameter(nn.init.orthogonal_(rows_RD).to(dtype))
        self.bias = None

    def rows(self) -> Tensor:
        """Returns (R, D) float32; equal to the weight where that is orthonormal."""
        basis_DR, factor_RR = torch.linalg.qr(self.weight.float().T)
        # QR is unique up to the signs of its diagonal: positive ones go along with the weight.
        return (basis_DR * torch.where(factor_RR.diagonal() < 0, -1.0, 1.0)).T


class FreeRows(nn.Linear):
    """Rows as they are learnt."""

    def rows(self) -> Tensor:
        """Returns the weight, (R, D)."""
        return self.weight


class Edit(nn.Module):
    """One intervention: h + P^T (source - P h), or h + P^T source."""

    def __init__(self, width: int, config: ReftConfig, device: torch.device) -> None:
        """Args: width of h, the settings, and where the weights lie."""
        super().__init__()
        self.form = FORMS[config.intervention]
        self.everywhere = config.prefix is None and config.suffix is None
        where: dict[str, Any] = {"device": device, "dtype": getattr(torch, config.dtype.name)}
        self.projection: OrthonormalRows | FreeRows
        if self.form.orthonormal:
            self.projection = OrthonormalRows(width, config.rank, **where)
        else:
            self.projection = FreeRows(width, config.rank, bias=config.projection_bias, **where)
        if self.form.sees_hidden:
            self.source = nn.Linear(width, config.rank, **where)
        else:
            self.constant = nn.Parameter(torch.rand(config.rank, **where))
        self.activation = function(config.activation)
        self.dropout = nn.Dropout(config.dropout)
        if config.start is Start.identity:
            self._start_as_identity()

    def _start_as_identity(self) -> None:
        with torch.no_grad():
            for parameter in self.source.parameters() if self.form.sees_hidden else [self.constant]:
                parameter.zero_()
            if self.form.replaces:
                self.source.weight.copy_(self.projection.weight)
            if self.form.replaces and self.projection.bias is not None:
                self.source.bias.copy_(self.projection.bias)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """Returns the edited hidden states in the type of the given ones."""
        rows_RD = self.projection.rows()
        x_BSD = as_weight(hidden_BSD, rows_RD)
        if self.form.sees_hidden:
            new_BSR = self.activation(self.source(as_weight(hidden_BSD, self.source.weight)))
        else:
            new_BSR = self.constant.expand(*hidden_BSD.shape[:-1], -1)
        if self.form.replaces:
            new_BSR = new_BSR - F.linear(x_BSD, rows_RD, self.projection.bias)
        edit_BSD = F.linear(as_weight(self.dropout(new_BSR), rows_RD), rows_RD.T)
        return hidden_BSD + edit_BSD.to(hidden_BSD.dtype)

    def behind(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The forward hook of the decoder layer."""
        if self.everywhere:
            return self(output)
        edited = kwargs["position_embeddings"].edited.view(*output.shape[:-1], 1)
        return torch.where(edited, self(output), output)


def insert(model: PreTrainedModel, config: ReftConfig, modules: list[str]) -> None:
    """Puts an intervention behind each decoder layer, in place; they have the model's mode and train."""
    language = model.model.language_model
    for name in modules:
        layer = model.get_submodule(name)
        edit = Edit(language.config.hidden_size, config, next(layer.parameters()).device).train(model.training)
        layer.add_module(CHILD, edit)
        layer.register_forward_hook(edit.behind, with_kwargs=True)
    if config.prefix is not None or config.suffix is not None:
        PromptPositions(config.prefix or 0, config.suffix or 0).follow(language)
