"""Times what a worker does for an image that is in the feature cache, and for one that is not; a 4B's features, CPU.

    python benchmarks/feature_cache_speed.py --folder outputs/cache/speed

`--folder /dev/shm/speed` shows what a tier in memory would give over the operating system's page cache.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from caption_workload import picture

from harness.data.assemble import make_encoder
from harness.data.config import DataConfig
from harness.data.features.key import media_key, pixel_settings
from harness.data.features.lookup import Lookup
from harness.data.features.store import Store
from harness.data.media.image import ImageRef
from harness.model.processor import load_processor
from harness.model.qwen3_vl import Qwen3VLConfig

LEVELS, WIDTH = 4, 2560


def timed(what: str, act: Callable[[], object]) -> None:
    """Prints the median of 30 calls."""
    seconds = []
    for _ in range(33):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    print(f"{what:45} {1000 * median(seconds[3:]):7.2f} ms")


def main() -> None:
    """Makes one JPEG of 720 x 640 pixels and its features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    encoder = make_encoder(DataConfig(), load_processor(Qwen3VLConfig(path="harness:tiny")))
    store = Store(folder, "speed", 1 << 40, time.time())
    store.folder.mkdir(parents=True, exist_ok=True)
    picture(np.random.default_rng(0), 720, 640).save(folder / "picture.jpg", quality=90)
    ref, grid = ImageRef(str(folder / "picture.jpg"), "picture"), (1, 40, 44)
    tokens = grid[1] * grid[2] // 4
    lookup = Lookup(store, f"speed {pixel_settings(encoder.pixels, encoder.text.sampling)}")
    features_FLE = torch.randn(tokens, LEVELS, WIDTH).bfloat16()
    key = media_key(lookup.prefix, ref, grid)

    def write() -> None:
        store.path(key).unlink(missing_ok=True)
        store.write(key, features_FLE)

    print(f"{tokens} visual tokens, {features_FLE.numel() * 2 / 2**20:.1f} MiB of features")
    timed("decode the JPEG, resize, make patches", lambda: encoder.pixels.image_patches(ref.load(), grid))
    timed("write the entry", write)
    timed("find the entry: hash the file, read, check", lambda: lookup.find(ref, grid, tokens))
    timed("  of that: hash the file", lambda: media_key(lookup.prefix, ref, grid))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
