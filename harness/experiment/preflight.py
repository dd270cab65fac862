"""What can be told of a run without torch: in a second, where importing it and the model take many.

Nothing is decided here: each mistake would be found later too, by who works with the thing. So only what is wrong for
certain is refused, and what can not be told so soon is left alone.
"""

import ctypes
import difflib
from pathlib import Path

from harness.config import RunConfig
from harness.errors import reject
from harness.model.checkpoint_path import resolve, tensor_names
from harness.trainer.standard import Accelerator, no_gpu
from harness.tuner.targeted import ALL_LINEAR, TargetedConfig

_DRIVER, _AMD = "libcuda.so.1", Path("/dev/kfd")
"""NVIDIA's library comes with the driver, AMD's with torch."""


def look(config: RunConfig) -> None:
    """Looks for the model, packages, the GPU, what targets name, and the first row of each file of data.

    Raises:
        UserError: Something is missing, or names nothing.
    """
    folder = Path(resolve(config.model.path))
    memory, logging, optim = config.memory, config.logging, config.optim
    for group, options in (("memory/quant", memory.quant), ("optim", optim), ("logging", logging)):
        if (library := getattr(options, "library", None)) is not None:
            library.find(f"{group}={options.name}")
    if config.trainer.accelerator is Accelerator.gpu and not _may_have_gpu():
        raise no_gpu()
    if (begun_with := config.trainer.weights_from) is not None and not Path(begun_with).is_dir():
        raise reject(
            "trainer.weights_from", begun_with, "no such folder; give a run folder, or checkpoints/step_N in one"
        )
    if isinstance(config.tuner, TargetedConfig):
        _check_targets(config.tuner.target_modules, folder)
    config.data.look()


def _may_have_gpu() -> bool:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return _AMD.exists()
    return True


def _check_targets(targets: list[str], folder: Path) -> None:
    """Refuses a target whose last part is no module's in the checkpoint; of the layers around it the model decides."""
    leaves = sorted({name.split(".")[-2] for name in tensor_names(folder) if "." in name})
    for target in targets if leaves else []:
        leaf = target.rpartition(".")[2]
        if target != ALL_LINEAR and leaf not in leaves:
            close = difflib.get_close_matches(leaf, leaves, n=1)
            hint = f"did you mean {close[0]}?" if close else "linear layers are such as q_proj"
            raise reject("tuner.target_modules", target, f"matches no linear layer; {hint}")
