"""The process group of a run's ranks: joined before anything is built, whatever strategy trains."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import lightning
import torch
import torch.distributed

from harness.config import RunConfig, config_hash
from harness.errors import UserError, reject
from harness.experiment.failure import report
from harness.experiment.folder import RunFolder
from harness.experiment.meeting import open_store
from harness.experiment.rank import global_rank, local_rank
from harness.experiment.ranks import LISTENER
from harness.trainer.standard import Backend, training_device


@contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """Makes this process a rank of the run's group; one process needs none.

    Lightning's strategies take a group that is there. After an error it is left as it is: taking it apart could mean
    waiting for a rank that is gone.

    Raises:
        UserError: The ranks' configs differ, or the backend does not suit the device.
    """
    trainer = config.trainer
    if trainer.world_size == 1:
        yield
        return
    device = training_device(trainer, local_rank())
    backend = trainer.ddp_backend or (Backend.nccl if device.type == "cuda" else Backend.gloo)
    if backend is Backend.nccl and device.type != "cuda":
        raise reject("trainer.ddp_backend", "nccl", "works between GPUs only, and this run is on the CPU; set gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backends = config.memory.strategy.backend(backend.name, trainer.world_size, trainer.nodes)
    rank, size, timeout = global_rank(), trainer.world_size, timedelta(seconds=trainer.ddp_timeout_s)
    listener = os.environ.pop(LISTENER, None)
    store = open_store(rank, size, timeout, int(listener) if listener else None)
    store.set(f"config/{rank}", config_hash(config))
    if store.get("config/0") != store.get(f"config/{rank}"):
        raise UserError(f"rank {rank} has another config than rank 0: do all nodes see the same run folder?")
    torch.distributed.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=timeout)
    yield
    torch.distributed.destroy_process_group()


class EarlyReport(lightning.Callback):
    """Reports an error at once: what Lightning does before it raises may wait for the other ranks."""

    def __init__(self, folder: RunFolder) -> None:
        """Args: the run folder."""
        self._folder = folder

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Writes the report of this rank."""
        report(self._folder, global_rank(), exception)
