"""Rows of new tokens in the embedding and the head: room for them, and a way to train them alone.

Shapes: B rows, S tokens of a row, D width, N new tokens, V vocabulary.

A published checkpoint has more rows than its tokenizer has tokens (151,936 and 151,669), so most new tokens take rows
that are there. Trained alone, new rows are a parameter `new_rows` (N, D) of the embedding, which takes the place of
its rows N in the lookup and, where the two are tied, in the head: gradients, optimiser state and weight decay then
reach nothing else. PEFT's trainable tokens are exported but not trained with: they copy the whole matrix each step,
and only some of PEFT's methods take them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.model.initialisation import draw, seeded
from harness.model.qwen3_vl import InitStrategy

log = logging.getLogger(__name__)

MULTIPLE = 64
"""A table that grows gets a multiple of this many rows, which products on a GPU are quick with."""
NAME = "new_rows"


@dataclass(frozen=True, slots=True)
class NewTokens:
    """New tokens of a loaded model."""

    ids: range
    changed: range
    """Rows that differ from the checkpoint's: those of `ids`, and behind them what a grown table was padded with."""
    dtype: torch.dtype
    """Of the embedding, as loaded."""


@torch.no_grad()
def add_rows(model: PreTrainedModel, ids: range, strategy: InitStrategy) -> NewTokens:
    """Gives new tokens their first rows in the embedding and the head, in place; both grow where they must.

    Args:
        model: As loaded, before any adapter.
        ids: Of the new tokens, behind all old ones.
        strategy: The rule; rows that only pad a table get the mean whatever it is.
    """
    old = _tables(model)[0].weight.shape[0]
    if ids.stop > old:
        # Not transformers' own start of new rows: it draws from the global random state.
        model.resize_token_embeddings(ids.stop, pad_to_multiple_of=MULTIPLE, mean_resizing=False)
        log.info("model.new_special_tokens: embedding and head grow to a multiple of %d rows, from %d", MULTIPLE, old)
    generator, std = seeded(), model.config.get_text_config().initializer_range
    for module in _tables(model):
        weight = module.weight
        mean_D = weight[: ids.start].mean(0, dtype=torch.float64)
        weight[old:] = mean_D.to(weight.dtype)
        if strategy is InitStrategy.mean:
            weight[ids.start : ids.stop] = mean_D.to(weight.dtype)
        else:
            weight[ids.start : ids.stop] = draw(strategy, (len(ids), weight.shape[1]), std, generator).to(weight.dtype)
    stop = weight.shape[0] if ids.stop > old else ids.stop
    return NewTokens(ids, range(ids.start, stop), weight.dtype)


class RowsApart:
    """New rows as parameters of their own, in place in a model whose other rows of these tables are frozen."""

    def __init__(self, model: PreTrainedModel, new: NewTokens) -> None:
        """Takes the rows out of the tables, as float32, and freezes those.

        Args:
            model: With plain `nn.Embedding` and `nn.Linear` for tables, whatever else a tuner put in.
            new: The tokens.
        """
        self._model, self._new = model, new
        self._ids = slice(new.ids.start, new.ids.stop)
        for module in _tables(model):
            weight = module.weight.requires_grad_(False)
            weight.data = weight.data.to(new.dtype)
            module.register_parameter(NAME, nn.Parameter(weight[self._ids].detach().clone().float()))
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        source = embedding if head.weight is embedding.weight else head
        embedding.register_forward_hook(lambda module, args, out: self._look_up(embedding.new_rows, args[0], out))
        # Not a hook: under ZeRO-3 the loss calls this for each chunk of tokens, and the module with its hooks once.
        forward = head.forward
        head.forward = lambda hidden: self._project(source.new_rows, hidden, forward(hidden))

    def _look_up(self, rows_ND: Tensor, ids_BS: Tensor, hidden_BSD: Tensor) -> Tensor:
        local_BS = ids_BS - self._ids.start
        is_new_BS = (local_BS >= 0) & (local_BS < len(rows_ND))
        # Looked up at every position, so that the rows have a gradient in each step, of zeros where none is used.
        found_BSD = F.embedding(local_BS.clamp(0, len(rows_ND) - 1), rows_ND).to(hidden_BSD.dtype)
        return torch.where(is_new_BS.unsqueeze(-1), found_BSD, hidden_BSD)

    def _project(self, rows_ND: Tensor, hidden_KD: Tensor, logits_KV: Tensor) -> Tensor:
        logits_KV[..., self._ids] = F.linear(hidden_KD, rows_ND.to(hidden_KD.dtype)).to(logits_KV.dtype)
        return logits_KV

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Makes the model a plain one for a while, to be saved: rows stand in their tables."""
        tables = _tables(self._model)
        rows = [module._parameters.pop(NAME) for module in tables]
        for module, rows_ND in zip(tables, rows, strict=True):
            module.weight.data[self._ids] = rows_ND.detach().to(module.weight)
        try:
            yield
        finally:
            for module, rows_ND in zip(tables, rows, strict=True):
                module.register_parameter(NAME, rows_ND)

    def exported(self) -> dict[str, Tensor]:
        """Returns the rows that differ from the checkpoint's by name of their table, those of padding included."""
        named = {id(module): name for name, module in self._model.named_modules()}
        changed = slice(self._new.changed.start, self._new.changed.stop)
        rows = {named[id(module)]: module.weight[changed].detach().float().cpu() for module in _tables(self._model)}
        for name, module in zip(rows, _tables(self._model), strict=True):
            rows[name][: len(self._new.ids)] = module.get_parameter(NAME).detach().float().cpu()
        return rows


def _tables(model: PreTrainedModel) -> list[Any]:
    """Returns the embedding, and the head where it has a matrix of its own."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return [embedding] if head.weight is embedding.weight else [embedding, head]
