"""Profiles some steps of a run: a trace for a viewer, and a table of kernels by what they are for.

Writes into the run folder: `profile/trace.json.gz` (chrome://tracing, ui.perfetto.dev), `profile/kernels.json` and
`profile/kernels.md`. On a GPU the seconds are those of kernels on it, on the CPU those of operators themselves.
Products with a side of at most 256 count as an adapter's: no base model but the tiny one has such.

What is profiled is slower, and its log interval counts like any other: profile in a run of its own.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_GROUPS = (
    ("attention", r"flash|fmha|attention|attn"),
    ("products", r"gemm|nvjet|cutlass|cublas|_scaled_mm|splitk|^aten::(mm|addmm|bmm|baddbmm|linear|convolution)$|xmma"),
    ("memory", r"memcpy|memset|copy|fill|^aten::(empty|zero)"),
    ("optimiser", r"multi_tensor|adam|optimizer"),
    ("communication", r"nccl"),
    ("norms and sums", r"norm|reduce|softmax|triton_(red|per)|^aten::(sum|mean)"),
    ("pointwise", r"elementwise|triton_poi|^aten::(mul|add|sub|div|silu|gelu|neg|pow|rsqrt|where|cat)_?(_backward)?$"),
)
"""What a kernel or operator is for, by its name; the first that fits holds."""
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_mm")
_SMALL = 256
_SHOWN = 30


class StepProfile(lightning.Callback):
    """Profiles from the first to the last of two optimiser steps."""

    def __init__(self, first: int, last: int, folder: Path) -> None:
        """Args: the steps, counted from 1, and the folder to write into."""
        self.first, self.last, self.folder = first, last, folder
        self.done = False
        self._profiler: Any = None

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Starts before the first step."""
        if self._profiler is None and trainer.global_step == self.first - 1:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu], record_shapes=True, acc_events=True)
            self._profiler.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Stops behind the last step and writes."""
        if self._profiler is None or self.done or trainer.global_step < self.last:
            return
        meter: Any = trainer.lightning_module.meter
        with meter.paused():
            self._profiler.stop()
            if trainer.is_global_zero:
                self.folder.mkdir()
                self._profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
                write(kernels(self._profiler), self.last - self.first + 1, self.folder)
        self.done = True


def kernels(profiler: Any) -> dict[tuple[str, str], tuple[float, int]]:
    """Returns seconds and calls by group and name: of kernels on a GPU, where there are any, each counted once.

    The lists of kernels at an operator of `profiler.events()` are no use: one that starts hundreds, as an optimiser's
    step of a whole model, was there hundreds of times.
    """
    recorded = profiler.profiler.kineto_results.events()
    # Names given to stretches of time (an optimiser's step, NCCL's collectives, compiled graphs) would count what runs
    # in them twice.
    on_gpu = [e for e in recorded if e.device_type() == DeviceType.CUDA and not e.is_user_annotation()]
    operators = {e.correlation_id(): e for e in recorded if e.name() in _PRODUCTS}
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in on_gpu:
        operator = operators.get(event.linked_correlation_id())
        made_by, shapes = (operator.name(), operator.shapes()) if operator else ("", [])
        spent[group(event.name(), made_by, shapes), event.name()].append(event.duration_ns() / 1e9)
    for event in [] if on_gpu else profiler.events():
        spent[group(event.name, event.name, event.input_shapes), event.name].append(event.self_cpu_time_total / 1e6)
    return {key: (sum(seconds), len(seconds)) for key, seconds in spent.items()}


def group(name: str, operator: str, shapes: list[Any]) -> str:
    """Returns what a kernel is for.

    Args:
        name: The kernel's name.
        operator: Name of the operator that launched it; empty if unknown.
        shapes: Of that operator's arguments.
    """
    found = next((group for group, pattern in _GROUPS if re.search(pattern, name, re.IGNORECASE)), "other")
    sides = [side for shape in shapes for side in shape if isinstance(side, int)] if operator in _PRODUCTS else []
    return "small products (adapters)" if sides and min(sides) <= _SMALL and found != "memory" else found


def write(found: dict[tuple[str, str], tuple[float, int]], steps: int, folder: Path) -> None:
    """Writes kernels.json and kernels.md, in milliseconds a step."""
    total = sum(seconds for seconds, _ in found.values()) or 1.0
    rows = sorted(((seconds, calls, *key) for key, (seconds, calls) in found.items()), reverse=True)
    groups: dict[str, float] = defaultdict(float)
    for seconds, _, kind, _ in rows:
        groups[kind] += seconds
    content = {
        "steps": steps,
        "groups": {kind: 1e3 * seconds / steps for kind, seconds in sorted(groups.items(), key=lambda item: -item[1])},
        "kernels": [
            {"group": kind, "name": name, "ms": 1e3 * seconds / steps, "calls": calls / steps}
            for seconds, calls, kind, name in rows
        ],
    }
    (folder / "kernels.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["| group | ms a step | share |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {ms:.2f} | {ms * steps / 1e3 / total:.1%} |" for kind, ms in content["groups"].items()]  # type: ignore[attr-defined]
    lines += ["", "| kernel | group | ms a step | calls a step |", "| --- | --- | --- | --- |"]
    for seconds, calls, kind, name in rows[:_SHOWN]:
        lines.append(f"| `{name[:90]}` | {kind} | {1e3 * seconds / steps:.2f} | {calls / steps:g} |")
    (folder / "kernels.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
