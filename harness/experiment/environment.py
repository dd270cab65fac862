"""What a result depends on beside its config: packages, code, machine, data."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "transformers", "peft", "lightning", "hydra-core", "omegaconf", "datasets", "tokenizers", "safetensors",
    "pillow", "numpy", "flash-attn", "flash-attn-4", "deepspeed", "bitsandbytes", "schedulefree",
    "wandb",
)  # fmt: skip
"""Packages whose version can change a result or its speed."""


def environment(data_fingerprint: str) -> dict[str, Any]:
    """Returns the content of environment.json.

    Args:
        data_fingerprint: sha256 over the training and validation rows.
    """
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(),
        "device": device(),
        "data_fingerprint": data_fingerprint,
    }


def device() -> dict[str, Any]:
    """Returns name and memory of the first GPU and their number, or what the CPU offers."""
    if not torch.cuda.is_available():
        return {"type": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "type": "cuda",
        "name": properties.name,
        "uuid": str(properties.uuid),
        "count": torch.cuda.device_count(),
        "memory_gib": properties.total_memory / 2**30,
        "cuda": torch.version.cuda,
    }


def git_state() -> dict[str, Any] | None:
    """Returns commit and whether files differ from it, or None outside a git checkout."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
