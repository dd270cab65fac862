"""`trainer.weights_from=<run folder>`: a new run whose trained weights begin as those that another run came to."""

import logging
import os
import shutil
from pathlib import Path

import torch

from harness.errors import UserError, reject
from harness.experiment.rank import global_rank
from harness.trainer import manifest
from harness.trainer.checkpoint import FILE, number_of
from harness.trainer.durable import sync
from harness.tuner.tuned import Tuned

log = logging.getLogger(__name__)

KEY = "trainer.weights_from"


def find(named: str) -> Path:
    """Returns the checkpoint's folder that a run folder's last one, or a step's own path, stands for.

    Raises:
        UserError: There is none, or it is damaged, or its weights are in parts.
    """
    folder = Path(named)
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints" / "last"
    folder = folder.resolve()
    step = number_of(folder.name)
    if step is None or not folder.is_dir():
        raise reject(KEY, named, "no checkpoint; give a run folder, or checkpoints/step_N, last or best in one")
    if (fault := manifest.fault(folder, step)) is not None:
        raise reject(KEY, named, f"{folder}: damaged: {fault}")
    if (folder / FILE).is_dir():
        remedy = "holds its weights in parts (FSDP2, ZeRO); after tuner=full begin with model.path=RUN_FOLDER/model"
        raise reject(KEY, named, f"{folder} {remedy}")
    return folder


def take_start(checkpoint: Path, checkpoints: Path) -> None:
    """Copies what the other run's base was computed with (tuner.init), before this run's tuner looks for its own.

    Args:
        checkpoint: The other run's.
        checkpoints: This run's folder of them.
    """
    source = checkpoint.resolve() / manifest.START
    target = checkpoints / source.name
    if global_rank() > 0 or not source.is_file() or target.is_file():
        return
    checkpoints.mkdir(parents=True, exist_ok=True)
    stage = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, stage)
    sync(stage)
    os.replace(stage, target)


def load(checkpoint: Path, tuned: Tuned) -> None:
    """Puts a checkpoint's weights into those that this run trains.

    Raises:
        UserError: The two are not of the same names and shapes.
    """
    # As `TrainingModule.state_dict` names them.
    stored = torch.load(checkpoint / FILE, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    given = {name.removeprefix("model."): value for name, value in stored.items()}
    trained = {name: parameter for name, parameter in tuned.model.named_parameters() if parameter.requires_grad}
    for here, there, words in ((trained, given, "lacks"), (given, trained, "holds what does not train here:")):
        if missing := sorted(here.keys() - there.keys()):
            some = f"{missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            raise UserError(f"{KEY}: {checkpoint} {words} {some}; set tuner and freeze as in that run")
    for name, parameter in trained.items():
        if parameter.shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} there and {tuple(parameter.shape)} here"
            raise UserError(f"{KEY}: {checkpoint}: {name} is {shapes}; set the tuner as in that run")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(given[name])
    log.info("%s: %d weights from %s", KEY, len(trained), checkpoint)
