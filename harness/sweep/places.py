"""What a trial gets of the machine: GPUs of its own, or a share of the cores."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.cores import threads, usable

_MOST_ON_CPU = 8
"""Trials side by side on a CPU where nobody says how many: each loads a model of its own."""


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names by which CUDA_VISIBLE_DEVICES calls the GPUs of this process."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(number) for number in range(count)]


@dataclass(kw_only=True, slots=True)
class Places:
    """Hands out GPUs and cores."""

    jobs: int
    """Trials side by side at most."""
    gpus: Sequence[str] = ()
    per_gpu: int = 1
    """Trials on a GPU at most."""
    cores: int = 1
    _load: Counter[str] = field(default_factory=Counter, init=False)
    _taken: int = field(default=0, init=False)

    @classmethod
    def of_machine(cls, jobs: int | None, per_gpu: int, gpus: Sequence[str], devices: int, trials: int) -> "Places":
        """Divides this machine.

        Args:
            jobs: As many as were asked for, or null.
            per_gpu: Trials that may share a GPU.
            gpus: From `visible_gpus`; empty where trials train on the CPU.
            devices: Processes of the largest trial.
            trials: How many there are.
        """
        cores = usable()
        fitting = len(gpus) * per_gpu // devices if gpus else min(cores, _MOST_ON_CPU) // devices
        return cls(jobs=max(1, min(jobs or max(1, fitting), trials)), gpus=gpus, per_gpu=per_gpu, cores=cores)

    def take(self, devices: int) -> list[str] | None:
        """Returns the GPUs of a trial, none on a CPU; None where it has to wait."""
        if self._taken >= self.jobs:
            return None
        # One that asks for more than there are is to say so itself.
        needed = min(devices, len(self.gpus))
        free = [gpu for gpu in sorted(self.gpus, key=lambda gpu: self._load[gpu]) if self._load[gpu] < self.per_gpu]
        if len(free) < needed:
            return None
        taken = sorted(free[:needed], key=self.gpus.index)
        self._load.update(taken)
        self._taken += 1
        return taken

    def give_back(self, gpus: Sequence[str]) -> None:
        """Takes back what `take` gave."""
        self._load.subtract(gpus)
        self._taken -= 1

    def variables(self, gpus: Sequence[str], devices: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Returns the environment that keeps a trial to its share; threads that the user has set stay."""
        own = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        return own | threads(self.cores, self.jobs * devices, environ)
