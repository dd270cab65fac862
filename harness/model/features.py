"""A vision tower whose results are cached: which of them, under which fingerprint, and how a batch is put together.

Where the aligner is frozen too, an entry is what stands in the place of visual tokens and DeepStack's levels (20 KiB a
token for 4B in bf16). Where it trains, it is what the mergers read, and they run each step.

On the CPU each image is run alone: products of few rows round otherwise than those of many, so that an image's features
would depend on what else was missing in its batch, and a resumed run would be another. On a GPU they do, by rounding.

Shapes: P patches, W width of the ViT, V visual tokens, M of them not cached, L levels, E values of one (D, the text's
width, behind the mergers; 4 W in front of them).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from harness.model.component import Component, component_of

if TYPE_CHECKING:
    from harness.data.batch import Batch, Cached
    from harness.model.feature_cache import FeatureCache
    from harness.model.vision import VisionIndex
    from harness.tuner.tuned import Tuned

Run = Callable[[Any, Tensor, Tensor, "VisionIndex | None"], tuple[Tensor, list[Tensor]]]
"""Runs a vision tower on pixels (P, D) and grids (N, 3), with or without their index: returns (V, D), and (V, D) of
each level."""


class Stage(Enum):
    """Where in the tower features are taken."""

    merged = "merged"
    """Behind the mergers."""
    states = "states"
    """In front of them."""


def pick_stage(tuned: "Tuned") -> Stage | None:
    """Returns where features are taken from a tuned model; None where the ViT itself changes in training."""
    changing = {
        component_of(name) for name, p in tuned.model.named_parameters() if p.requires_grad or name in tuned.adapter
    }
    if Component.vit in changing:
        return None
    return Stage.states if Component.aligner in changing else Stage.merged


def fingerprint(visual: Any, stage: Stage, precision: str, device: torch.device) -> str:
    """Returns a hash (hex) of all that features depend on besides the pixels, rounding included.

    Args:
        visual: The vision tower. Its weights are read: a second for those of the 8B model.
        stage: Where features are taken: the aligner counts only behind it.
        precision: Compute type.
        device: Where the tower runs.
    """
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    config = {key: value for key, value in visual.config.to_dict().items() if not key.startswith("_")}
    config.pop("transformers_version", None)
    compiled = "run_block" in vars(visual)
    versions = [torch.__version__, transformers.__version__]
    numerics = [stage.name, precision, card, visual.config._attn_implementation, compiled, *versions]
    digest = hashlib.sha256(json.dumps([config, numerics], sort_keys=True, default=str).encode())
    mergers = ("merger.", "deepstack_merger_list.")
    weights = [(k, v) for k, v in visual.state_dict().items() if stage is Stage.merged or not k.startswith(mergers)]
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        for part in pool.map(_hash, weights):
            digest.update(part)
    return digest.hexdigest()


def _hash(named: tuple[str, Any]) -> bytes:
    name, value = named
    if not isinstance(value, Tensor):
        return hashlib.sha256(f"{name} {value!r}".encode()).digest()
    digest = hashlib.sha256(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def token_bytes(visual: Any, stage: Stage, precision: str) -> int:
    """Returns the bytes that a visual token's features take."""
    config = visual.config
    merged, states = config.out_hidden_size, config.spatial_merge_size**2 * config.hidden_size
    itemsize = 4 if precision == "fp32" else 2
    return (1 + len(config.deepstack_visual_indexes)) * (merged if stage is Stage.merged else states) * itemsize


def see(visual: Any, batch: "Batch", cached: "Cached", run: Run) -> tuple[Tensor, list[Tensor]]:
    """Returns what stands in the place of visual tokens, (V, D), and DeepStack's levels: cached, or computed and kept.

    Args:
        visual: The vision tower, with its `feature_cache`.
        batch: A batch on the tower's device.
        cached: What the cache gave to it.
        run: Runs the tower.
    """
    return from_features(visual, look(visual, batch, cached, run))


def look(visual: Any, batch: "Batch", cached: "Cached", run: Run) -> Tensor:
    """Returns the features of what a batch shows (V, L, E): cached, or computed and kept; see above."""
    cache: FeatureCache = visual.feature_cache
    fresh_MLE = None
    if batch.pixel_values is not None:
        assert batch.grid_thw is not None
        with cache.timed(batch.pixel_values):
            fresh_MLE = compute(visual, batch.pixel_values, batch.grid_thw, cache.stage, run, batch.vision)
        cache.keep(cached.missed, fresh_MLE)
    cache.count(cached)
    return _joined(fresh_MLE, cached)


def from_features(visual: Any, features_VLE: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns what stands in the place of visual tokens, (V, D), and DeepStack's levels; mergers that train run."""
    if visual.feature_cache.stage is Stage.merged:
        return features_VLE[:, 0], list(features_VLE[:, 1:].unbind(1))
    last_PW, *states = (level_VE.reshape(-1, visual.config.hidden_size) for level_VE in features_VLE.unbind(1))
    # In the tower's own order, in which dropout draws its numbers: the last layer's comes last.
    levels = [merger(state_PW) for merger, state_PW in zip(visual.deepstack_merger_list, states, strict=True)]
    return visual.merger(last_PW), levels


@torch.no_grad()
def compute(
    visual: Any, pixels_PD: Tensor, grid_N3: Tensor, stage: Stage, run: Run, index: "VisionIndex | None" = None
) -> Tensor:
    """Returns the features of images and videos, (M, L, E), detached.

    Args:
        visual: The vision tower.
        pixels_PD: Their patches.
        grid_N3: Their grids.
        stage: Where features are taken.
        run: Runs the tower.
        index: Of all of them, where it is there.
    """
    if pixels_PD.device.type == "cpu" and len(grid_N3) > 1:
        parts = pixels_PD.split(grid_N3.prod(dim=1).tolist())
        return torch.cat([_levels(visual, *one, stage, run, None) for one in zip(parts, grid_N3.split(1), strict=True)])
    return _levels(visual, pixels_PD, grid_N3, stage, run, index)


def _levels(
    visual: Any, pixels_PD: Tensor, grid_N3: Tensor, stage: Stage, run: Run, index: "VisionIndex | None"
) -> Tensor:
    if stage is Stage.merged:
        first_MD, levels = run(visual, pixels_PD, grid_N3, index)
        return torch.stack([first_MD, *levels], dim=1)
    with _without_mergers(visual):
        last_PW, states = run(visual, pixels_PD, grid_N3, index)
    width = visual.spatial_merge_size**2 * visual.config.hidden_size
    return torch.stack([state_PW.reshape(-1, width) for state_PW in (last_PW, *states)], dim=1)


@contextmanager
def _without_mergers(visual: Any) -> Iterator[None]:
    """Lets the tower hand out what its mergers read.

    They must not run here: their dropout would move the random state by what was missing, and a resumed run would be
    another.
    """
    merger, others = visual.merger, visual.deepstack_merger_list
    visual.merger, visual.deepstack_merger_list = nn.Identity(), nn.ModuleList(nn.Identity() for _ in others)
    try:
        yield
    finally:
        visual.merger, visual.deepstack_merger_list = merger, others


def _joined(fresh_MLE: Tensor | None, cached: "Cached") -> Tensor:
    """Puts computed and cached features into the order of the tokens, without a wait for the device."""
    if fresh_MLE is None:
        assert cached.features is not None
        return cached.features
    if cached.features is None:
        return fresh_MLE
    assert cached.order is not None
    return torch.cat([fresh_MLE, cached.features]).index_select(0, cached.order)
