"""Decides whether a run keeps the features of its vision tower (`data.vit_cache`), says why, and connects the parts.

The pixels of an image follow from its file and the settings alone: nothing in `data` draws how an image looks. A
setting that does (augmentation, a random size) has to be refused here. NEFTune's noise goes to text alone.
"""

import logging
import time
from pathlib import Path

import torch

from harness.config import RunConfig
from harness.data.config import CacheMode
from harness.data.datamodule import DataModule
from harness.data.features.key import pixel_settings
from harness.data.features.lookup import Lookup
from harness.data.features.store import Store
from harness.errors import reject
from harness.model.feature_cache import FeatureCache
from harness.model.features import Stage, fingerprint, pick_stage, token_bytes
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

SMALLEST_TOWER = 10_000_000
"""Parameters below which auto runs the tower each step: that takes no longer than opening a file."""
_KEY = "data.vit_cache.mode"


def open_feature_cache(
    config: RunConfig, data: DataModule, tuned: Tuned, precision: str, device: torch.device
) -> FeatureCache | None:
    """Returns the cache of the run, put onto the vision tower and into the data module, or None and says why.

    Args:
        config: The run's config.
        data: Prepared; its total of steps is set.
        tuned: The model, with everything on it that changes its weights.
        precision: Compute type.
        device: Where it trains.

    Raises:
        UserError: `data.vit_cache.mode=always`, and a cache would be wrong or of no use.
    """
    mode = config.data.vit_cache.mode
    if mode is CacheMode.never:
        return None
    stage = pick_stage(tuned)
    wrong = _hangs(config) or _wrong(config, data, stage)
    if wrong is not None and mode is CacheMode.always:
        raise reject(_KEY, mode.name, wrong)
    if stage is None or wrong is not None:
        log.info("%s=auto: the ViT runs each step: %s", _KEY, wrong)
        return None
    visual = tuned.base.model.visual
    num_bytes = _visual_tokens(data) * token_bytes(visual, stage, precision)
    reason = _useless(config, data, visual, num_bytes)
    if reason is not None and mode is CacheMode.auto:
        log.info("%s=auto: the ViT runs each step: %s", _KEY, reason)
        return None
    folder = _folder(config)
    assert folder is not None
    tower = fingerprint(visual, stage, precision, device)
    cache = _connect(config, data, visual, stage, Store(folder, tower, _max_bytes(config), time.time()))
    place = "behind the mergers" if stage is Stage.merged else "in front of the mergers, which train"
    size = f"at most {num_bytes / 2**30:.2f} GiB" if num_bytes else "a stream"
    log.info(
        "%s=%s: the ViT's features are kept %s, %s, in %s", _KEY, mode.name, place, size, cache.lookup.store.folder
    )
    return cache


def may_keep_features(config: RunConfig, data: DataModule) -> bool:
    """Says whether `open_feature_cache` may open one, as far as that is known without the model."""
    mode = config.data.vit_cache.mode
    if mode is not CacheMode.auto:
        return mode is CacheMode.always
    return _seen_once(config, data) is None and data.shows_something


def close_feature_cache(cache: FeatureCache, data: DataModule, tuned: Tuned) -> None:
    """Waits for the disk and takes the cache off the tower; what comes after runs it as it is."""
    cache.close()
    data.features = None
    if hasattr(tuned.base.model.visual, "feature_cache"):
        del tuned.base.model.visual.feature_cache


def _connect(config: RunConfig, data: DataModule, visual: torch.nn.Module, stage: Stage, store: Store) -> FeatureCache:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        store.probe()
    except OSError as error:
        remedy = f"features can not be kept there ({error}); give another folder, or data.vit_cache.mode=never"
        raise reject("data.vit_cache.folder", store.root, remedy) from error
    encoder = data.encoder
    prefix = f"{store.tower} {pixel_settings(encoder.pixels, encoder.text.sampling)}"
    cache = FeatureCache(Lookup(store, prefix), stage, encoder.pixels.merge_size**2)
    visual.feature_cache = cache  # type: ignore[assignment]  # no module and no tensor: an attribute like any other
    data.features = cache
    return cache


def _hangs(config: RunConfig) -> str | None:
    """Returns why ranks would wait for each other, or None."""
    strategy = config.memory.strategy
    if not strategy.sharded or strategy.keeps_frozen_vit or config.trainer.devices == 1:
        return None
    return f"memory/strategy={strategy.name} splits the ViT, and ranks that find features do not run it; set never"


def _wrong(config: RunConfig, data: DataModule, stage: Stage | None) -> str | None:
    """Returns why features can not be kept, with the remedy, or None."""
    if stage is None:
        return (
            "the ViT trains or has an adapter, so its features change each step; freeze it (freeze=vit), or set never"
        )
    if not data.shows_something:
        return "no training row shows an image or video; set never"
    if _folder(config) is None:
        return "data.cache_dir=null leaves no place for features; give data.vit_cache.folder, or set never"
    return None


def _useless(config: RunConfig, data: DataModule, visual: torch.nn.Module, num_bytes: int) -> str | None:
    """Returns why features are better not kept, as far as that is not for the user to say, or None."""
    parameters = sum(parameter.numel() for parameter in visual.parameters())
    if parameters < SMALLEST_TOWER:
        return f"it has {parameters:,} parameters, and is as fast as a file"
    if (reason := _seen_once(config, data)) is not None:
        return reason
    if num_bytes > _max_bytes(config):
        bound = f"data.vit_cache.max_gib={config.data.vit_cache.max_gib:g}"
        return f"its features take {num_bytes / 2**30:.3g} GiB, over {bound}"
    return None


def _seen_once(config: RunConfig, data: DataModule) -> str | None:
    """Returns why no row may come a second time, or None."""
    if data.train_samples is None:
        return "rows of a stream may never come again"
    if data.total_steps <= data.steps(1, config.trainer.world_size):
        return "no row comes a second time in this run (mode=always keeps them for other runs)"
    return None


def _visual_tokens(data: DataModule) -> int:
    return sum(account.visual_tokens for account in data.accounts.values())


def _max_bytes(config: RunConfig) -> int:
    return int(config.data.vit_cache.max_gib * 2**30)


def _folder(config: RunConfig) -> Path | None:
    folder, cache_dir = config.data.vit_cache.folder, config.data.cache_dir
    if folder is not None:
        return Path(folder)
    return None if cache_dir is None else Path(cache_dir) / "vit_features"
