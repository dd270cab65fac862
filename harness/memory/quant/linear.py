"""A frozen linear layer held in few bits; its product and the input gradient are those of the weight it stands for.

    y = x W^T      dx = dy W      W made of the bits in the forward pass and again in the backward pass (QLoRA, Dettmers
                                  et al., arXiv 2305.14314, eq. 5), never kept in between

A library says which bits stand for a weight; how they are held, multiplied and differentiated is the same for all, so
that tuners, compiled blocks and predictions meet one kind of layer. `weight` makes the matrix, so what looks at weights
(DoRA's norms, PEFT's methods) works as on a plain layer; what would write to them is refused on the command line.

Shapes: T tokens, D inputs, E outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Codec(Protocol):
    """How bits stand for a weight. Layers of a shape share one, so that compiled code has one program for them."""

    def weight(self, tensors: Sequence[Tensor], dtype: torch.dtype, anchor: Tensor) -> Tensor:
        """Returns the matrix, (E, D).

        Args:
            tensors: What `Quantized` holds.
            dtype: Of the result.
            anchor: What it is multiplied with. It goes into the operator that makes the matrix, unread: else a compiler
                would see one call in forward and backward pass, make it once, and keep the matrix in between.
        """

    def product(self, x_TD: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns x W^T, (T, E), of x in `dtype`."""


class Quantized:
    """A weight as a codec wrote it."""

    __slots__ = ("codec", "tensors")

    def __init__(self, codec: Codec, *tensors: Tensor) -> None:
        """Args: the codec, the bits, and what else is needed to read them."""
        self.codec, self.tensors = codec, tensors


class QuantLinear(nn.Linear):
    """A frozen linear layer. `weight` is read-only: the values in use, in the type that they had.

    The bits are a parameter, so that they are counted, move with the model and are no part of DDP's buffers, which each
    forward pass would send around. What else is needed follows by hand, and keeps its type: a model that is cast to
    bfloat16 is not to lose the precision of its scales.
    """

    def __init__(
        self,
        quantized: Quantized,
        shape: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the layer.

        Args:
            quantized: The weight.
            shape: (E, D).
            bias: Kept as it is.
            dtype: Of the weight as it was, which the result has outside autocast.
            compute_dtype: Of the product; None: that of the result.
        """
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.codec = quantized.codec
        self.weight_data = nn.Parameter(quantized.tensors[0], requires_grad=False)
        self.side = quantized.tensors[1:]
        self.bias = bias  # type: ignore[assignment]
        self.dtype, self.compute_dtype = dtype, compute_dtype

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(E, D): made anew at each look."""
        return self.codec.weight((self.weight_data, *self.side), self.dtype, self.weight_data)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, without the bias."""
        return self.weight_data.nbytes + self.side_bytes

    @property
    def side_bytes(self) -> int:
        """Bytes that are in no parameter."""
        return sum(tensor.nbytes for tensor in self.side)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        with torch.autocast(kind, enabled=False):
            rows, product_dtype = x.reshape(-1, x.shape[-1]), self.compute_dtype or dtype
            if rows.requires_grad and torch.is_grad_enabled():
                y_TE = _Product.apply(rows, self.codec, product_dtype, self.weight_data, *self.side)
            else:  # Dynamo takes `ctx` for an argument too many, of as many tensors as some codecs have.
                y_TE = self.codec.product(rows.to(product_dtype), (self.weight_data, *self.side), product_dtype)
            y = y_TE.view(*x.shape[:-1], y_TE.shape[-1]).to(dtype)
            return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """Names the codec too."""
        return f"{super().extra_repr()}, {self.codec}"

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        data = self._parameters.pop("weight_data")
        assert data is not None
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        moved = _moved(data.data, function)
        self.weight_data = data if moved is data.data else nn.Parameter(moved, requires_grad=False)
        self.side = tuple(_moved(tensor, function) for tensor in self.side)
        return self


def _moved(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    moved = function(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


class _Product(torch.autograd.Function):
    """Keeps the bits alone, which are there anyway."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, codec: Codec, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        """Returns x W^T, (T, E)."""
        ctx.save_for_backward(*tensors)
        ctx.codec, ctx.dtype, ctx.x_dtype = codec, dtype, x_TD.dtype
        return codec.product(x_TD.to(dtype), tensors, dtype)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Returns dy W, (T, D)."""
        tensors = ctx.saved_tensors  # Once: checkpointing refuses a second look.
        nothing = (None,) * (2 + len(tensors))
        weight_ED = ctx.codec.weight(tensors, ctx.dtype, grad_TE)
        return (grad_TE.to(ctx.dtype) @ weight_ED).to(ctx.x_dtype), *nothing


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Yields what is quantised at and below a module, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantLinear))


def sizes(model: nn.Module) -> dict[str, int]:
    """Returns how many weights each parameter stands for, by name: bits are packed."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, layer in quantized_layers(model):
        counts[f"{name}.weight_data"] = layer.in_features * layer.out_features
    return counts
