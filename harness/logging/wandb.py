"""Weights & Biases: one W&B run for each run, whose id the run folder keeps, so that a resumed run goes on in it.

Started by `wandb agent`, it is the run that the agent has made: project, entity and id are the sweep's.
"""

import http.client
import logging
import netrc
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from harness.errors import UserError, reject
from harness.experiment.folder import RunFolder
from harness.library import Library
from harness.logging.run_info import RunInfo
from harness.registry import register

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

PROBE_SECONDS = 3.0
"""How long the W&B server may take to answer. `wandb.init` itself would block for 90 s, then end the training."""


class WandbMode(Enum):
    """Where W&B's records go."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """A run in Weights & Biases, beside the console."""

    library: ClassVar[Library] = Library("wandb", "wandb", "wandb")
    name: str = "wandb"
    project: str = "harness"
    """W&B project."""
    entity: str | None = None
    """W&B user or team. None: the default one of the key."""
    mode: WandbMode = WandbMode.auto
    """auto: online if a key is there and the server answers within 3 s, else offline, with one line that says why.
    online: the same, but an error instead of offline. offline: records stay in <run folder>/wandb, for `wandb sync`.
    disabled: nothing is recorded."""
    group: str | None = None
    """W&B group. None: the name of the study or sweep."""
    tags: list[str] = field(default_factory=list)
    """Tags beside those for model, tuner, freeze policy and data."""

    def __post_init__(self) -> None:
        """Checks what W&B would refuse."""
        if not self.project:
            raise reject("logging.project", repr(self.project), "must name a W&B project")
        refused = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        if refused:
            raise reject("logging.tags", refused[0], "W&B takes tags of 1 to 64 characters")


@register("logging", WandbConfig)
def build(config: WandbConfig, run: RunInfo) -> list["Logger"]:
    """Starts the W&B run on rank 0, and returns the logger.

    Raises:
        UserError: The package wandb is missing, or `mode=online` without a key or a server.
    """
    config.library.find(f"logging={config.name}")
    from lightning.pytorch.utilities import rank_zero_only

    from harness.logging.wandb_logger import StepLogger

    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    experiment = _start(config, run) if is_first else None
    run_id = run.run_id if experiment is None else experiment.id
    if run_id != run.run_id:
        RunFolder(run.folder).write_status(run_id=run_id)
    return [StepLogger(project=config.project, save_dir=run.folder, id=run_id, experiment=experiment)]


def _start(config: WandbConfig, run: RunInfo) -> Any:
    import wandb

    _put_aside(run)
    own = {"project": config.project, "entity": config.entity, "id": run.run_id}
    experiment = wandb.init(
        mode=choose_mode(config.mode).value,  # type: ignore[arg-type]
        **({} if wandb.setup().settings.sweep_id else own),  # type: ignore[arg-type]
        dir=run.folder,
        name=run.name,
        resume="allow",
        group=config.group or run.group,
        job_type="train",
        tags=list(dict.fromkeys(tag[:64] for tag in [*run.tags, *config.tags])),
        config=run.config,
        # By default wandb.init returns a run that this process has open, and two runs would be written as one.
        reinit="finish_previous",
        # train.log has the output; W&B's copy of the stream breaks the live progress bar.
        settings=wandb.Settings(console="off"),
    )
    # For curves to follow our step, whatever else somebody logs to the run.
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return experiment


def _put_aside(run: RunInfo) -> None:
    """Leaves `wandb sync` the record to come alone, which is given all rows of metrics.jsonl up to where it goes on.

    A killed process has lost the last rows of its record, and what it has of later ones is measured again.
    """
    for record in (run.folder / "wandb").glob(f"offline-run-*-{run.run_id}"):
        aside = record.parent / "superseded"
        aside.mkdir(exist_ok=True)
        os.replace(record, aside / record.name)


def choose_mode(asked: WandbMode) -> WandbMode:
    """Decides between online and offline, and says in one line why it is offline.

    Raises:
        UserError: `online` was asked for and can not be had.
    """
    if asked in (WandbMode.offline, WandbMode.disabled):
        return asked
    import wandb

    settings = wandb.setup().settings
    if asked is WandbMode.auto and settings.mode in ("offline", "disabled"):
        log.info("W&B: %s, as its own settings say", settings.mode)
        return WandbMode(settings.mode)
    if not has_key(settings):
        reason, remedy = f"there is no key for {settings.base_url}", "run `wandb login`"
    elif not answers(settings.base_url):
        reason, remedy = f"{settings.base_url} did not answer within {PROBE_SECONDS:.0f} s", "check the network"
    else:
        return WandbMode.online
    if asked is WandbMode.online:
        raise reject("logging.mode", "online", f"{reason}; {remedy}, or set logging.mode=offline")
    log.warning("W&B: offline, because %s; send the run later with `wandb sync`", reason)
    return WandbMode.offline


def has_key(settings: Any) -> bool:
    """Says whether W&B has a key: in its settings (WANDB_API_KEY is one of them), or in a netrc file.

    The key itself is neither returned nor logged.
    """
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    host = urlsplit(settings.base_url).hostname
    home = Path.home()
    # The places where W&B itself looks; NETRC is the convention of curl and requests.
    for path in (Path(os.environ.get("NETRC") or home / ".netrc"), home / "_netrc"):
        if path.is_file():
            try:
                if host and netrc.netrc(path).authenticators(host):
                    return True
            except netrc.NetrcParseError as error:
                raise UserError(f"{path}:{error.lineno}: {error.msg}; mend the file that holds W&B's key") from None
    return False


def answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Says whether a server answers at all, with whatever HTTP status, within some seconds."""
    heard = threading.Event()

    def probe() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError, http.client.HTTPException):
            return
        heard.set()

    # In a thread, because the look-up of a host name takes no time limit; a refusal ends the wait at once.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return heard.is_set()
