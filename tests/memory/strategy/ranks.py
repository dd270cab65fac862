"""Runs trials one after the other as one rank of a group: `ranks.py ARGUMENT...`, with RANK and the like set.

An argument is a run folder, or `FOLDER@STEP`: the run there goes on from that step, and what its metrics were before
is in whole.jsonl. Processes and their imports cost more than the runs, so that all cases of a file share them.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed

from harness.experiment import trial


def deepspeed_without_gpu() -> None:
    """Makes DeepSpeed's strategies start on the CPU, which Lightning refuses although DeepSpeed runs there."""
    import deepspeed
    from lightning.pytorch.strategies import DDPStrategy

    from harness.memory.strategy import engine

    class OnCpu(engine.Zero):
        def setup_environment(self) -> None:
            DDPStrategy.setup_environment(self)

        def setup_distributed(self) -> None:
            self.set_world_ranks()
            self._init_deepspeed_distributed()

        def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            made = deepspeed.initialize(
                config=self.config,
                model=model,
                model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                dist_init_required=False,
            )
            return made[0], made[1]

    engine.Zero = OnCpu  # type: ignore[misc]


def rewind(folder: Path, step: str) -> None:
    """Leaves a run as a kill after a step would have, and makes it go on."""
    shutil.copy(folder / "metrics.jsonl", folder / "whole.jsonl")
    last = folder / "checkpoints" / "last"
    last.unlink()
    last.symlink_to(f"step_{step}")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("resume: null", "resume: auto"))


def run(argument: str) -> int:
    folder, _, step = argument.partition("@")
    several = torch.distributed.is_initialized()
    if several:
        # The first rank may still be at its result.
        torch.distributed.barrier()
    if step and os.environ["RANK"] == "0":
        rewind(Path(folder), step)
    if several:
        torch.distributed.barrier()
    return trial.main([folder])


def main() -> int:
    """Returns the first exit code that is not 0."""
    there = importlib.util.find_spec("deepspeed") is not None and not torch.cuda.is_available()
    if there and "zero" in " ".join(sys.argv):
        deepspeed_without_gpu()
    return next((code for code in map(run, sys.argv[1:]) if code), 0)


if __name__ == "__main__":
    sys.exit(main())
