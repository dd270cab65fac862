"""`hydra/sweeper=grid`: gives the launcher the trials that the command line was checked for."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from harness.experiment.launch import Task
from harness.sweep.crew import open_sweep
from harness.sweep.plugin import adopt


class GridSweeper(Sweeper):
    """Launches all trials at once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Makes the launcher."""
        assert isinstance(task_function, Task)
        self.task, self.folder = task_function, open_sweep(config).path
        self.config = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs them; the arguments are those that the trials were made of."""
        self.task.begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        return self.launcher.launch([list(trial) for trial in self.task.checked], initial_job_idx=0)


adopt(GridSweeper)
