"""FLOPs of a training step, from the model's modules and from what trains: nothing is measured or waited for.

A product of N weights costs a row 2 N in the forward pass, 2 N more in the backward pass where a gradient has to flow
on to its input, and 2 N more where its weights train. So a frozen layer under adapters costs 4 N, and below the lowest
module that trains there is no backward pass: a frozen ViT costs 2 N. Attention costs 4 H D for each pair of a query and
a key that it may see (H heads of width D), twice that in the backward pass. The head sees supervised positions alone.

Two counts: what the method needs (tokens without padding, each product once; the base of MFU, Chowdhery et al., arXiv
2204.02311, appendix B), and what is done (padding, recomputation of checkpointed blocks, the scores that FlashAttention
computes again in its backward pass; the base of HFU).

Adapters count by the linear layers and trained matrices that they are made of, on top of the base. Not counted:
products of weights with weights and with matrices derived from them (OFT's and BOFT's rotations, FourierFT, the norms
of DoRA and the base product that PEFT repeats for DoRA under dropout), VeRA's shared matrices, element-wise work, the
optimiser. The attention of LongLoRA is counted whole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor, nn

from harness.data.batch import Batch
from harness.model.attention import takes_cu_seqlens


@dataclass(slots=True)
class Extent:
    """How much of each kind a batch has; or, as factors, what one of each costs."""

    tokens: float = 0.0
    supervised: float = 0.0
    """Positions that the head sees."""
    patches: float = 0.0
    """Rows of the ViT."""
    visual: float = 0.0
    """Rows of the mergers."""
    pairs: float = 0.0
    """Pairs of a query and a key that it may see, in the text."""
    frame_pairs: float = 0.0
    """The same within images and frames."""

    def dot(self, other: "Extent") -> float:
        """Returns the sum of the products of equal kinds."""
        return sum(getattr(self, item.name) * getattr(other, item.name) for item in fields(self))


@dataclass(slots=True)
class Costs:
    """FLOPs of each kind of row or pair."""

    needed: Extent
    """What the method needs."""
    again: Extent
    """What is computed a second time."""
    dense_mask: bool
    """Whether the text's kernel works on all pairs of a row and hides those that may not see each other."""

    def of(self, batch: Batch) -> tuple[float, float]:
        """Returns the FLOPs that a batch needs, and those that are done for it: of both, this rank's share."""
        seen = batch.pixel_values is not None
        patches = 0.0 if batch.pixel_values is None else float(batch.pixel_values.shape[0])
        hits = 0 if batch.cached is None else batch.cached.num_hit
        fresh = batch.num_visual - hits if batch.share is None else batch.share.num_fresh
        vision = {"patches": patches, "visual": float(fresh if seen else 0)}
        vision["frame_pairs"] = float(batch.num_frame_pairs if seen else 0)
        ranks, (rows, length) = 1, batch.input_ids.shape
        if batch.share is not None:
            ranks, (rows, length) = batch.share.size, batch.share.positions.shape
        supervised = batch.num_supervised / ranks
        needed = Extent(batch.num_tokens / ranks, supervised, pairs=batch.num_pairs / ranks, **vision)
        pairs = rows * length**2 if self.dense_mask else batch.num_pairs
        done = Extent(rows * length / ranks, supervised, pairs=pairs / ranks, **vision)
        return self.needed.dot(needed), self.needed.dot(done) + self.again.dot(done)


def survey(model: Any) -> Costs:
    """Works out the costs of a Qwen3-VL as it stands: adapters in place, trained weights marked, checkpointing set."""
    walk = _Walk()
    levels = walk.vision(model.model.visual)
    walk.text(model.model.language_model, levels)
    walk.kind = "supervised"
    walk.site(model.lm_head, walk.flow)
    dense = not takes_cu_seqlens(model.model.language_model.config._attn_implementation)
    return Costs(walk.needed, walk.again, dense)


def _trains(*modules: Any) -> bool:
    return any(p.requires_grad for module in modules if module is not None for p in module.parameters())


class _Matrix(NamedTuple):
    """A matrix that an adapter holds by itself, in the form of a linear layer."""

    in_features: int
    out_features: int
    weight: Tensor


class _Walk:
    """Goes through the modules in the order of the forward pass and adds up."""

    def __init__(self) -> None:
        self.needed, self.again = Extent(), Extent()
        self.kind = "patches"
        self.flow = False
        """Whether what comes in next needs a gradient."""
        self._forward: list[tuple[str, float]] = []
        """Kind and FLOPs of each product of the current block's forward pass, in order."""
        self._counted: set[int] = set()

    def vision(self, visual: Any) -> list[bool]:
        """Counts the vision tower; returns which levels need a gradient, the embeddings' own first."""
        embed, heads = visual.patch_embed.proj, visual.config.hidden_size
        self._product(embed.weight.numel(), False, embed.weight.requires_grad)
        self.flow = _trains(visual.patch_embed, visual.pos_embed)
        levels = []
        for number, block in enumerate(visual.blocks):
            qkv = [block.attn.qkv]
            self._block(block, qkv, block.attn.proj, (block.norm1, block.norm2), ("frame_pairs", heads))
            if number in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
                levels.append(self._merger(merger))
        return [self._merger(visual.merger), *levels]

    def text(self, language: Any, levels: list[bool]) -> None:
        """Counts the decoder layers."""
        self.kind, config = "tokens", language.config
        self.flow = levels[0] or _trains(language.embed_tokens)
        width = config.num_attention_heads * config.head_dim
        for number, layer in enumerate(language.layers):
            attn = layer.self_attn
            qkv, norms = (
                [attn.q_proj, attn.k_proj, attn.v_proj],
                (layer.input_layernorm, layer.post_attention_layernorm),
            )
            self._block(layer, qkv, attn.o_proj, norms, ("pairs", width))
            self.flow |= number + 1 < len(levels) and levels[number + 1]
        self.flow |= _trains(language.norm)

    def _block(self, block: Any, qkv: list[Any], out: Any, norms: tuple[Any, Any], attention: tuple[str, int]) -> None:
        """Counts attention and MLP, and their second forward pass where the block is checkpointed."""
        self._forward.clear()
        sees = self.flow or _trains(norms[0])
        attends = any([self.site(module, sees) for module in qkv]) or _trains(*_norms(block))  # noqa: C419 - all are counted
        self._attention(*attention, attends)
        self.flow |= self.site(out, attends)
        self._mlp(block.mlp, self.flow or _trains(norms[1]))
        self.flow |= _trains(block)
        # What an adapter put behind the block, or into it.
        self._count(_products(block), self.flow)
        if self.flow and hasattr(block, "recompute"):
            # Recomputation ends with the last tensor that the backward pass reads, before the last product.
            for kind, flops in self._forward[:-1]:
                _add(self.again, kind, flops)

    def _attention(self, kind: str, width: int, backward: bool) -> None:
        self._forward.append((kind, 4.0 * width))
        _add(self.needed, kind, (12.0 if backward else 4.0) * width)
        _add(self.again, kind, 2.0 * width if backward else 0.0)

    def _mlp(self, mlp: Any, flow: bool) -> None:
        experts = getattr(mlp, "experts", None)
        if experts is not None:
            self._experts(mlp, experts, flow)
            return
        first, last = ("gate_proj", "up_proj"), "down_proj"
        if hasattr(mlp, "linear_fc1"):
            first, last = ("linear_fc1",), "linear_fc2"  # type: ignore[assignment]
        inner = [self.site(getattr(mlp, name), flow) for name in first]
        self.site(getattr(mlp, last), any(inner))

    def _experts(self, mlp: Any, experts: Any, flow: bool) -> None:
        """A token passes the router and, of the experts' stacked matrices, those of its best few."""
        self._product(mlp.gate.weight.numel(), flow, mlp.gate.weight.requires_grad)
        share = mlp.gate.top_k / experts.num_experts
        for weight in (p for p in experts.parameters() if p.ndim == 3):
            self._product(share * weight.numel(), flow, weight.requires_grad)
            flow |= weight.requires_grad

    def _merger(self, merger: Any) -> bool:
        kind, self.kind = self.kind, "visual"
        flow = self.site(merger.linear_fc1, self.flow or _trains(merger.norm))
        flow = self.site(merger.linear_fc2, flow)
        self._count(_products(merger), flow)
        self.kind = kind
        return flow or _trains(merger)

    def site(self, module: Any, flow: bool) -> bool:
        """Counts a linear layer and the adapter in its place; returns whether the output needs a gradient.

        Args:
            module: The layer, or what wraps it.
            flow: Whether the input needs a gradient.
        """
        return self._count(_products(module), flow) or _trains(module)

    def _count(self, products: Iterable[Any], flow: bool) -> bool:
        """Counts those not yet counted; of them the first reads what has come in."""
        inner, width = flow, None
        for product in products:
            if (key := id(_weight(product))) in self._counted:
                continue
            self._counted.add(key)
            width = width or product.in_features
            trained = _weight_trains(product)
            # What is as wide as the base reads the same input; what is not reads what the adapter made of it.
            to_input = flow if product.in_features == width else inner
            self._product(product.in_features * product.out_features, to_input, trained)
            inner |= trained
        return inner

    def _product(self, weights: float, to_input: bool, to_weight: bool) -> None:
        self._forward.append((self.kind, 2.0 * weights))
        _add(self.needed, self.kind, 2.0 * weights * (1 + to_input + to_weight))


def _add(extent: Extent, kind: str, flops: float) -> None:
    setattr(extent, kind, getattr(extent, kind) + flops)


def _products(module: Any) -> Iterator[Any]:
    """Yields the products at and below a module: linear layers of any class, quantised ones too, and matrices."""
    # Of a module that PEFT trains as a copy, the copy alone takes part.
    copies = module._modules.get("modules_to_save")
    has_shape = hasattr(module, "in_features") and hasattr(module, "out_features")
    if copies is None and has_shape and "base_layer" not in module._modules:
        yield module
    if isinstance(module, nn.ParameterDict):
        yield from (_Matrix(p.shape[1], p.shape[0], p) for p in module.values() if p.ndim == 2 and min(p.shape) > 1)
    for child in (module if copies is None else copies)._modules.values():
        if child is not None:
            yield from _products(child)


def _norms(block: Any) -> Iterable[Any]:
    attn = getattr(block, "self_attn", None)
    return (getattr(attn, "q_norm", None), getattr(attn, "k_norm", None))


def _weight(product: Any) -> Any:
    """Returns what tells a product from others: its parameter, or itself where its weight is made anew at each look."""
    return product._parameters.get("weight", product) if isinstance(product, nn.Module) else product.weight


def _weight_trains(product: Any) -> bool:
    weight = _weight(product)
    return isinstance(weight, Tensor) and weight.requires_grad
