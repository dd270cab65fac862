"""A trial of a sweep, from what is asked of it to a folder that is ready to start."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from harness import config
from harness.config import RunConfig
from harness.experiment.folder import RunFolder
from harness.sweep.folder import FINAL, Record, state_of, write_record


@dataclass(kw_only=True, slots=True)
class Trial:
    """One combination of overrides."""

    identity: str
    number: int
    overrides: list[str]
    config: RunConfig
    folder: RunFolder | None = None
    """Where it has been started before; None where it has not."""

    @property
    def run(self) -> RunFolder:
        """Its folder, once there is one."""
        assert self.folder is not None, self
        return self.folder

    @property
    def state(self) -> str:
        """As `state_of` says, waiting where there is no folder."""
        return "waiting" if self.folder is None else state_of(self.folder)

    @property
    def is_final(self) -> bool:
        """Whether a second start leaves it alone."""
        return self.state in FINAL


def command_of(overrides: Sequence[str]) -> str:
    """Returns the command that runs a trial by itself."""
    return shlex.join(["python", "-m", "harness", *overrides])


def prepare(trial: Trial, task: DictConfig, hydra: DictConfig, path: Path, *, restarts: bool = False) -> None:
    """Freezes a trial in its folder: Hydra's files, config.yaml, trial.json.

    One that was started before goes on after its last checkpoint, with the settings of now that are no part of its
    identity.

    Args:
        trial: The trial, whose folder becomes `path` if it has none.
        task: Its composed config.
        hydra: Hydra's own node of it.
        path: For a trial without a folder; with another trial's record in it, a folder beside it.
        restarts: Whether it may be started again from this folder without a word from here.
    """
    if trial.folder is None:
        if (path / "trial.json").is_file() or (path / "status.json").is_file():
            path = path.with_name(f"{path.name}_{trial.identity[:6]}")
        trial.folder = RunFolder(path)
    if restarts or trial.run.read_status():
        task.trainer.resume = "auto"
    files = trial.run.path / ".hydra"
    files.mkdir(parents=True, exist_ok=True)
    for name, node in (("config", task), ("hydra", hydra), ("overrides", hydra.hydra.overrides.task)):
        (files / f"{name}.yaml").write_text(OmegaConf.to_yaml(node), encoding="utf-8")
    config.save(task, trial.run.config)
    write_record(
        Record(
            identity=trial.identity,
            number=trial.number,
            overrides=trial.overrides,
            command=command_of(trial.overrides),
            folder=trial.run,
        )
    )
