"""Keeps what torch.compile makes on disk, for the next run and for the other trials of a sweep.

Inductor names an entry after the graph, its own version and settings, the device and its driver; Triton after source,
version and device. So one folder serves every run, and an entry that does not fit is not found rather than wrong. The
folder is named after torch and Python, for old ones to be deleted: `<data.cache_dir>/compile/torch-2.11.0-py312`.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

from harness.errors import reject


def keep_compiled(cache_dir: str | None) -> None:
    """Points Inductor and Triton at a folder of the cache, through the environment, which further ranks inherit.

    Call before torch is imported, which reads some of it then. What the user has set stays.

    Args:
        cache_dir: `data.cache_dir`; null changes nothing, so that torch keeps its own folder of temporary files.

    Raises:
        UserError: A folder can not be made, which torch's import would fail of. One that is there may be read-only.
    """
    if cache_dir is None:
        return
    for name, value in settings(Path(cache_dir)).items():
        if name in os.environ:
            continue
        if name.endswith("_DIR") and not _can_be_made(Path(value)):
            raise reject("data.cache_dir", cache_dir, "no folder can be made in it; null keeps nothing")
        os.environ[name] = value


def _can_be_made(folder: Path) -> bool:
    """Looks without making it, which is left to who has something to put there."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    return nearest.is_dir() and (nearest == folder or os.access(nearest, os.W_OK | os.X_OK))


def settings(cache_dir: Path) -> dict[str, str]:
    """Returns the environment variables that `keep_compiled` sets where they are not set."""
    version = f"torch-{importlib.metadata.version('torch')}-py{sys.version_info.major}{sys.version_info.minor}"
    folder = (cache_dir / "compile" / version).resolve()
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
    }
