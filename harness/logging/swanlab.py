"""SwanLab: one experiment for each run, kept in `<run folder>/swanlab` or sent to a server.

The id is the run's, so that online a resumed run goes on in its experiment; offline each attempt has its own record.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UserError, reject
from harness.library import Library
from harness.logging.run_info import RunInfo
from harness.registry import register

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class SwanlabMode(Enum):
    """Where SwanLab's records go."""

    offline = "offline"
    local = "local"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class SwanlabConfig:
    """An experiment in SwanLab, beside the console."""

    library: ClassVar[Library] = Library("swanlab", "swanlab", "swanlab")
    name: str = "swanlab"
    project: str = "harness"
    """SwanLab project."""
    workspace: str | None = None
    """SwanLab user or organisation. None: the one of the key."""
    mode: SwanlabMode = SwanlabMode.offline
    """offline: records stay in <run folder>/swanlab, for `swanlab sync`. local: the same, for `swanlab watch`, which
    needs the package swanlab[dashboard]. online: sent to the server, with the key of `swanlab login` or
    SWANLAB_API_KEY. disabled: nothing is recorded."""
    group: str | None = None
    """SwanLab group. None: the name of the study or sweep."""
    tags: list[str] = field(default_factory=list)
    """Tags beside those for model, tuner, freeze policy and data."""

    def __post_init__(self) -> None:
        """Checks what SwanLab would refuse."""
        if not self.project:
            raise reject("logging.project", repr(self.project), "must name a SwanLab project")


@register("logging", SwanlabConfig)
def build(config: SwanlabConfig, run: RunInfo) -> list["Logger"]:
    """Starts the experiment on rank 0, and returns the logger.

    Raises:
        UserError: The package is missing, or the server did not take the run.
    """
    config.library.find(f"logging={config.name}")
    if config.mode is SwanlabMode.local:
        from importlib.util import find_spec

        if find_spec("swanboard") is None:
            remedy = "needs the package swanlab[dashboard]: pip install 'swanlab[dashboard]', or use offline"
            raise reject("logging.mode", "local", remedy)
    from lightning.pytorch.utilities import rank_zero_only

    from harness.logging.swanlab_logger import SwanLabLogger

    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    # A server has the rows of the attempts before; a record of its own begins with them.
    online = config.mode is SwanlabMode.online
    return [SwanLabLogger(_start(config, run) if is_first else None, run.initial_step if online else -1)]


def _start(config: SwanlabConfig, run: RunInfo) -> object:
    import swanlab

    folder = run.folder / "swanlab"
    folder.mkdir(exist_ok=True)
    online = config.mode is SwanlabMode.online
    try:
        return swanlab.init(
            mode=config.mode.value,  # type: ignore[arg-type]
            project=config.project,
            workspace=config.workspace,
            log_dir=str(folder),
            name=run.name,
            group=config.group or run.group,
            job_type="train",
            tags=list(dict.fromkeys([*run.tags, *config.tags])),
            config=run.config,
            reinit=True,
            **({"id": run.run_id, "resume": "allow"} if online else {}),
        )
    except Exception as error:
        raise UserError(f"logging=swanlab: {error}; use logging.mode=offline to go on without the server") from error
