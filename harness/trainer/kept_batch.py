"""Keeps the batch of a step in a file, and shows it: `python -m harness.trainer.kept_batch FILE`.

Safetensors, so that nothing in it can run: the tensors of each micro-batch, and as JSON in the header all that is no
tensor, the rows among it. `read` makes the same batches of it, for `harness.model.forward.token_losses`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness.data.batch import Batch


def write(path: Path, step: int, batches: Sequence["Batch"]) -> None:
    """Writes the micro-batches that one rank had in a step.

    Args:
        path: Of the file; its folder is made.
        step: Number of the step.
        batches: On the CPU.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plain = [_take_apart(batch, f"{number}.", tensors) for number, batch in enumerate(batches)]
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, {"step": str(step), "batches": json.dumps(plain)})


def read(path: Path) -> list["Batch"]:
    """Returns the micro-batches of a file that `write` made."""
    from harness.data.batch import Batch

    tensors, header = _load(path)
    return [_put_together(Batch, plain, f"{n}.", tensors) for n, plain in enumerate(json.loads(header["batches"]))]


def describe(path: Path) -> str:
    """Returns what is in a file, for a reader: rows, and each tensor's shape, type, range and values not finite."""
    tensors, header = _load(path)
    lines = [f"step {header['step']}"]
    for number, plain in enumerate(json.loads(header["batches"])):
        counts = ", ".join(f"{plain[key]:,} {key.removeprefix('num_')}" for key in ("num_tokens", "num_supervised"))
        lines += [f"micro-batch {number}: {counts}", *(f"  row {origin}" for origin in dict.fromkeys(plain["origins"]))]
        own = {name: value for name, value in tensors.items() if name.startswith(f"{number}.")}
        lines += [f"  {name.partition('.')[2]}: {_facts(value)}" for name, value in own.items()]
    return "\n".join(lines)


def _take_apart(item: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Puts a dataclass's tensors under their dotted names, and returns the rest of it."""
    plain: dict[str, Any] = {}
    for name in (part.name for part in fields(item)):
        value = getattr(item, name)
        if isinstance(value, Tensor):
            # The file takes no two tensors that share memory.
            tensors[prefix + name] = value.clone(memory_format=torch.contiguous_format)
        else:
            plain[name] = _take_apart(value, f"{prefix}{name}.", tensors) if is_dataclass(value) else value
    return plain


def _put_together(kind: Any, plain: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> Any:
    from harness.data.batch import Cached, Share
    from harness.model.vision import VisionIndex

    values = dict(plain)
    for name, nested in (("vision", VisionIndex), ("cached", Cached), ("share", Share)):
        if isinstance(values.get(name), dict):
            values[name] = _put_together(nested, values[name], f"{prefix}{name}.", tensors)
    for part in fields(kind):
        if prefix + part.name in tensors:
            values[part.name] = tensors[prefix + part.name]
    return kind(**values)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - is no dict


def _facts(value: Tensor) -> str:
    facts = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if not value.numel():
        return facts
    finite = value[torch.isfinite(value)]
    span = f", {finite.min().item():.6g} to {finite.max().item():.6g}" if finite.numel() else ""
    odd = value.numel() - finite.numel()
    return facts + span + (f", {odd:,} not finite" if odd else "")


if __name__ == "__main__":
    print(describe(Path(sys.argv[1])))
