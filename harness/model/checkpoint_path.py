"""Finds the checkpoint that `model.path` names and refuses what is no Qwen3-VL, before any weight is read."""

import json
import struct
from pathlib import Path

from harness.errors import reject

SHIPPED = "harness:"
"""Prefix of checkpoints that come with the package."""
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Where a checkpoint's weights lie, or how they lie in several files."""
_HEADER_BYTES = 100 * 2**20
"""Longest header that safetensors takes."""
MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
"""`model_type` values in config.json that this harness trains."""


def resolve(path: str) -> str:
    """Returns a folder, or the hub id unchanged.

    Raises:
        UserError: The path looks like a folder and is none, or holds no Qwen3-VL.
    """
    if path.startswith(SHIPPED):
        folder = Path(__file__).parent / f"{path.removeprefix(SHIPPED)}_checkpoint"
        if not folder.is_dir():
            raise reject("model.path", path, "no such checkpoint in the package; known: harness:tiny")
        return str(folder)
    if Path(path).is_dir():
        _check_folder(path)
    elif path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_file():
        raise reject("model.path", path, "no such folder; give a checkpoint folder or a hub id")
    return path


def tensor_names(folder: Path) -> list[str]:
    """Returns the names of a checkpoint's tensors; none where it is no folder of safetensors files, or a broken one."""
    try:
        if (path := folder / INDEX).is_file():
            return [*json.loads(path.read_text(encoding="utf-8"))["weight_map"]]
        with open(folder / WHOLE, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            return [*json.loads(file.read(min(size, _HEADER_BYTES)))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return []


def _check_folder(path: str) -> None:
    config = Path(path) / "config.json"
    if not config.is_file():
        raise reject("model.path", path, "the folder has no config.json, so it is no checkpoint of transformers")
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise reject("model.path", path, f"its config.json is not JSON ({error})") from error
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in MODEL_TYPES:
        raise reject("model.path", path, f"is a {kind!r} checkpoint, not a Qwen3-VL ({' or '.join(MODEL_TYPES)})")
