"""Checkpoints of a run: one folder per saved step, and links to the last and the best.

A checkpoint is staged beside its target and renamed, so a folder named step_N is whole. Lightning's own save is not
atomic where the temporary folder lies on another file system.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import lightning

FILE = "trainer.ckpt"
"""Lightning's checkpoint inside a step's folder: trainable weights, optimiser, schedule, loops, random state.

A folder itself where each rank writes its part: torch.distributed.checkpoint's or DeepSpeed's.
"""


@dataclass(slots=True)
class Checkpointer:
    """Saves, links and prunes below `checkpoints/`."""

    folder: Path
    keep: int
    """Newest checkpoints kept beside the best."""

    def save(self, trainer: lightning.Trainer, step: int, *, best: bool) -> None:
        """Saves the state after an optimiser step. Called on every rank.

        Args:
            trainer: Lightning's trainer, between two steps.
            step: Number of the step.
            best: Whether this is the best so far.
        """
        stage, target = self.folder / f".step_{step}", self.folder / f"step_{step}"
        trainer.save_checkpoint(stage / FILE, weights_only=False)
        if trainer.is_global_zero:
            _sync(stage / FILE)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(stage, target)
            self._link("last", target)
            if best:
                self._link("best", target)
            self._prune()

    def step_of(self, name: str) -> int | None:
        """Returns the step that `last` or `best` points to, or None."""
        link = self.folder / name
        return int(link.resolve().name.removeprefix("step_")) if (link / FILE).exists() else None

    def path_of(self, name: str) -> Path:
        """Returns the checkpoint behind `last` or `best`."""
        return (self.folder / name).resolve() / FILE

    def _link(self, name: str, target: Path) -> None:
        stage = self.folder / f".{name}"
        stage.unlink(missing_ok=True)
        stage.symlink_to(target.name)
        os.replace(stage, self.folder / name)

    def _prune(self) -> None:
        steps = sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))
        for step in steps[: -self.keep]:
            if step not in (self.step_of("best"), self.step_of("last")):
                shutil.rmtree(self.folder / f"step_{step}")


def _sync(path: Path) -> None:
    for part in [path] if path.is_file() else path.rglob("*"):
        if part.is_file():
            with open(part, "rb") as file:
                os.fsync(file.fileno())
