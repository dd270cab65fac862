"""Trains tuners and optimisers for 20 steps each on a true shape with random weights, in one process on one GPU.

The pieces are those of a run, as in memory_table.py; the first steps, which compile, are left out of the speed.
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from memory_table import CAPTIONS, TINY, Batches, Job, peaks, prepared, release

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.data.batch import Batch
from harness.data.datamodule import DataModule
from harness.trainer.standard import training_device
from harness.tuner.outlook import Outlook

WARMUP, STEPS = 5, 20
Entry = dict[str, Any]


class Bench:
    """Measures one choice after the other."""

    def __init__(self, shape: str) -> None:
        registry.load()
        self.shape = shape
        Batches(shape == "tiny")  # Makes the captions where they are not there.
        self._data: DataModule | None = None
        self._batches: list[Batch] = []

    def measure(self, chosen: list[str]) -> Entry:
        """Returns a choice's figures, or why there are none."""
        tiny = TINY if self.shape == "tiny" else []
        where = ["model.path=harness:tiny", f"data.train={CAPTIONS}/train.jsonl"]
        config = to_run_config(compose_config([*chosen, *where, *tiny]))
        device = training_device(config.trainer, 0)
        if self._data is None:
            self._data = prepared(config, 3, self.shape == "tiny")
            self._batches = list(self._data.train_dataloader())[:3]
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        peaks(device)
        began = time.perf_counter()
        try:
            with TemporaryDirectory() as folder:
                outlook = Outlook(STEPS, self._data.calibration_batches, device, Path(folder) / "start.safetensors")
                job = Job(self.shape, config, self._batches, device, outlook, predicts=False)
            start_s, start = time.perf_counter() - began, peaks(device)
            figures = self._steps(job, device) | {"start_s": start_s, "start_peak_gib": start["peak_allocated_gib"]}
            made: Entry = {"status": "completed", "error": None, **figures}
        except Exception as error:
            made = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:300], "tokens_per_s": None}
        job = None  # type: ignore[assignment]
        release()
        return made | {"val": {}, "device": name, "wall_time_s": time.perf_counter() - began}

    @staticmethod
    def _steps(job: Job, device: torch.device) -> Entry:
        for number in range(WARMUP):
            job.step(number)
        taken = [job.seconds(number) for number in range(WARMUP, STEPS)]
        return {
            "tokens_per_s": statistics.median(tokens / seconds for seconds, tokens, _ in taken),
            "trainable_parameters": sum(p.numel() for p in job.model.parameters() if p.requires_grad),
            "peak_allocated_gib": peaks(device)["peak_allocated_gib"],
        }
